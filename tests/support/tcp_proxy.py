"""A TCP proxy between a client and a real server, with network faults on demand."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal, Self
from urllib.parse import urlsplit

Direction = Literal["to_server", "to_client"]
_CHUNK_BYTES = 65_536


class TcpProxy:
    """``async with TcpProxy(upstream_url) as proxy`` listens at ``proxy.url``. Attributes can change at any time.

    Only the server's end of a connection is closed in order; ``cut`` and ``cut_after`` reset both ends.
    """

    def __init__(self, upstream_url: str) -> None:
        parts = urlsplit(upstream_url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._scheme = parts.scheme
        self._pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pattern: tuple[Direction, bytes] | None = None
        self._resumed = asyncio.Event()
        self._resumed.set()
        self.delay_seconds = 0.0  # before each chunk is forwarded
        self.bytes_per_second: float | None = None  # of each direction
        self.half_open = False  # discard everything in both directions, and close nothing
        self.refusing = False  # reset new connections
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The upstream's URL with our host and port."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """The number of open client connections."""
        return len(self._tasks)

    def cut(self) -> None:
        """Reset every connection, at both ends."""
        for writer in self._pairs:
            _reset(writer)

    def cut_after(self, direction: Direction, pattern: bytes) -> None:
        """Forward the next chunk that contains the pattern up to the end of the pattern, then cut. Works once."""
        self._pattern = (direction, pattern)

    def pause(self) -> None:
        """Hold back all data in both directions until ``resume``. No data is lost."""
        self._resumed.clear()

    def resume(self) -> None:
        self._resumed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._bridge(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one end closed the connection, or the test is over; both ends are closed below
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _bridge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            return _reset(writer)
        self.accepted += 1
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        pair = {writer, up_writer}
        self._pairs |= pair
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump("to_server", reader, up_writer))
                both.create_task(self._pump("to_client", up_reader, writer))
        except* OSError:
            pass  # a reset; the other end is closed below
        finally:
            self._pairs -= pair
            up_writer.close()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._resumed.wait()
            await asyncio.sleep(self.delay_seconds)
            if self.bytes_per_second:
                await asyncio.sleep(len(data) / self.bytes_per_second)
            if self.half_open:
                continue
            end = self._end_of_pattern(direction, data)
            writer.write(data[:end])
            await writer.drain()
            if end is not None:
                self.cut()
        if not self.half_open:
            writer.close()

    def _end_of_pattern(self, direction: Direction, data: bytes) -> int | None:
        if self._pattern is None or self._pattern[0] != direction:
            return None
        pattern = self._pattern[1]
        start = data.find(pattern)
        if start < 0:
            return None
        self._pattern = None
        return start + len(pattern)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
