"""Run the daemon against every release of socket.io in the tests: ``python -m tests.tools.generations --seconds 180``.

All releases run at the same time, each with a daemon of its own that has to detect the generation. A busy and a quiet
connection are open for this long; then the server disconnects all sockets, is killed, and starts again. Writes
docs/generations.md. Exits with 1 if a row is missing, or a connection ended by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..support import expected_rows
from ..support.daemon import DaemonProcess, until, write_config
from ..support.node_server import VERSIONS, NodeServer
from .benchmarks.environment import describe_machine

BUSY = {"/real-time/crowd-sentiment": ["AAPL"]}  # with 20 events a second
START_SECONDS = 120  # of all daemons at once
QUIET = {"/real-time/tweet-volume": ["ON"]}
PAGE = Path(__file__).parents[2] / "docs" / "generations.md"
HEAD = """\
# Releases of Socket.IO

Made by `python -m tests.tools.generations`: servers from npm, each with a daemon that detects the generation. A daemon
has a busy connection (20 events a second) and a quiet one. 0.x has the heartbeats of its own defaults, the others ping
every 25 s with a timeout of 20 s. After the time in the table the server disconnects both sockets, later it is killed
and started again. *Ended* counts connections that ended before that. Sent and stored are rows; `protocol` is what was
detected, in the terms of `provider.protocol`.

Run on {machine}.

| socket.io | node | protocol | seconds | sent | stored | ended | after disconnect and kill |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one release did."""

    version: str
    node: str
    protocol: str
    seconds: float
    sent: int
    stored: int
    ended: int
    is_back: bool

    @property
    def is_good(self) -> bool:
        return self.sent == self.stored and self.ended == 0 and self.is_back

    def __str__(self) -> str:
        cells = (self.version, self.node, self.protocol, f"{self.seconds:g}", f"{self.sent:,}", f"{self.stored:,}")
        return f"| {' | '.join(cells)} | {self.ended} | {'complete' if self.is_back else 'NOT COMPLETE'} |"


async def run(generation: str, seconds: float, folder: Path) -> Outcome:
    """Run one release and its daemon."""
    folder.mkdir()
    database_url = f"sqlite:///{folder / 'ingestor.db'}"
    async with NodeServer(generation) as server:
        await server.run_command("mute", ticker="ON")
        config = write_config(folder, url=server.url, database_url=database_url, subscriptions=BUSY | QUIET)
        async with DaemonProcess(config, server.api_key) as daemon:
            await until(lambda: daemon.is_live, START_SECONDS)
            await asyncio.sleep(seconds)
            ended = len(sids(server, "subscribed") & sids(server, "disconnected"))  # without the probe's session
            protocol = daemon.status["connections"][0]["dialect"] or "none"
            sent, stored = await settle(server, daemon)
            is_back = await comes_back(server, daemon)
    node = next(event["node"] for event in server.events if event["event"] == "listening")
    return Outcome(server.version, node, protocol, seconds, sent, stored, ended, is_back)


def sids(server: NodeServer, event: str) -> set[str]:
    """Return the server's ids of the connections with such an event."""
    return {reported["sid"] for reported in server.events if reported["event"] == event}


async def settle(server: NodeServer, daemon: DaemonProcess) -> tuple[int, int]:
    """Stop the flow, and return how many rows were sent, and how many of them are stored with the right value."""
    await server.run_command("mute", ticker="AAPL")
    expected = expected_rows.current(server.emitted)
    try:
        await until(lambda: daemon.db.current() == expected)
    except TimeoutError:
        pass  # the table shows it
    return len(expected), len(expected.items() & daemon.db.current().items())


async def comes_back(server: NodeServer, daemon: DaemonProcess) -> bool:
    """Disconnect, kill and restart; return whether the rows of afterwards are stored as well."""
    await server.run_command("kick")
    await until(lambda: server.count("subscribed") == 4)
    await server.kill()
    await server.start()
    await until(lambda: server.count("subscribed") == 6, 60)
    await asyncio.sleep(1)
    sent, stored = await settle(server, daemon)
    return sent == stored


async def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = await asyncio.gather(*(run(key, seconds, Path(folder, key)) for key in VERSIONS))
    table = "".join(f"{outcome}\n" for outcome in outcomes)
    PAGE.write_text(HEAD.format(machine=describe_machine()) + table)
    print(table)
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="how long the connections are open")
    sys.exit(asyncio.run(main(parser.parse_args().seconds)))
