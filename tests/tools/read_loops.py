"""``python -m tests.tools.read_loops``: the processor time of an event in the read loops of Socket.IO 4 and 0.9.

This process receives the same rows with both clients in turn. Another process sends them, encoded in advance.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ingestor.provider.auth import Token
from ingestor.provider.socket.connection import Connection, ConnectionSettings
from ingestor.provider.socket.protocol import ProtocolVersion

from ..integration.provider.raw_engineio_server import ClientSocket, RawServer
from ..integration.provider.raw_socketio_09_server import RawSocketIo09Server, send_bytes_as_they_are
from .benchmarks.scripts.counting_sink import CountingSink

ROWS = '[{"ts":"2026-01-05T14:30:00.000Z","ticker":"AAPL","average_sentiment":"-0.0337734249681757"}]'
SERVERS: dict[ProtocolVersion, tuple[Any, str]] = {
    ProtocolVersion.SOCKET_IO_4: (RawServer, f'42["res",{ROWS}]'),
    ProtocolVersion.SOCKET_IO_0: (RawSocketIo09Server, f'5:::{{"name":"res","args":[{ROWS}]}}'),
}


def serve(version: ProtocolVersion, events: int, pipe: Any) -> None:
    """Send this many events to each client, until the process is killed."""
    make, text = SERVERS[version]
    frame = bytes([0x81, 126]) + len(text).to_bytes(2, "big") + text.encode()
    data = frame * events

    async def talk(client: ClientSocket) -> None:
        send_bytes_as_they_are(client, data)

    async def run() -> None:
        async with make(talk) as server:
            pipe.send(server.url)
            await asyncio.Event().wait()

    asyncio.run(run())


@asynccontextmanager
async def running(version: ProtocolVersion, events: int) -> AsyncIterator[str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(version, events, theirs))
    process.start()
    try:
        yield await asyncio.to_thread(ours.recv)
    finally:
        process.kill()
        process.join()


async def measure(version: ProtocolVersion, url: str, events: int) -> float:
    """Return the µs of processor time that an event took."""
    sink = CountingSink()
    settings = ConnectionSettings(url=url, path="/p", params="{}", events=("res",))
    connection = Connection(settings, version, sink, sink.append)
    await connection.open(Token(value="t", requested_at=0.0, life_seconds=3600.0))
    began, before = time.thread_time(), connection.frames
    while connection.frames < events:
        await asyncio.sleep(0.01)
    seconds = time.thread_time() - began
    await connection.close("stopped", "measured")
    return seconds / (events - before) * 1e6


async def main(events: int, rounds: int) -> None:
    new, old = SERVERS
    async with running(new, events) as new_url, running(old, events) as old_url:
        pairs = [(await measure(new, new_url, events), await measure(old, old_url, events)) for _ in range(rounds)]
    for version, values in zip(SERVERS, zip(*pairs, strict=True), strict=True):
        print(f"{version.value}: {statistics.median(values):.2f} µs ({min(values):.2f}–{max(values):.2f})")
    print(f"ratio: {statistics.median(two / one for one, two in pairs):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    asyncio.run(main(options.events, options.rounds))
