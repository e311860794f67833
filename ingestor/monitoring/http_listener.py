"""Accept HTTP connections: a bounded number, and none stays idle, so that descriptors are left for the data."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from typing import cast

from aiohttp import web

MAX_CONNECTIONS = 64
IDLE_SECONDS = 60.0  # without a new request, however slowly a request is sent or a response read
CHECK_SECONDS = 1.0  # between two checks for that, and after a failure to accept

log = logging.getLogger(__name__)


def max_connections() -> int:
    """Return how many connections are allowed: at most a quarter of the descriptors that this process may open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if limit == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, limit // 4))


class HttpListener:
    """Passes connections on to an aiohttp server. At the limit, a new one replaces the one that is idle for longest.

    A probe is therefore answered while others hold connections open. asyncio's own server accepts without a limit and,
    without descriptors, tries thousands of times per second.
    """

    def __init__(self, runner: web.AppRunner) -> None:
        """The runner must be set up before ``listen``."""
        self._runner = runner
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._active_at: dict[object, float] = {}  # time.monotonic() of the newest request, or of the connection

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Listen on every address of ``host``, and return the first. Raises OSError, UnicodeError."""
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in dict.fromkeys(infos):
            listening = socket.socket(family, socket.SOCK_STREAM)
            self._sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen()
            listening.setblocking(False)
        self._tasks = [loop.create_task(self._accept(listening), name="http accept") for listening in self._sockets]
        self._tasks.append(loop.create_task(self._close_idle(), name="http idle"))
        found: tuple[str, int] = self._sockets[0].getsockname()[:2]
        return found

    def note_request(self, protocol: object) -> None:
        """Note that a request on this connection was read."""
        self._active_at[protocol] = time.monotonic()

    async def close(self) -> None:
        """Accept no further connections. The server closes those that are open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except ConnectionError:
                continue  # the client has gone
            except OSError as error:
                log.warning("http.listen: cannot accept a connection, retrying: %s", error.strerror)
                await asyncio.sleep(CHECK_SECONDS)
                continue
            self._make_room()
            try:
                await loop.connect_accepted_socket(cast(web.Server, self._runner.server), connection)
            except OSError:
                connection.close()

    def _make_room(self) -> None:
        open_ = sorted(self.connections, key=self._last_active)
        for protocol in open_[: max(0, len(open_) + 1 - max_connections())]:
            _abort(protocol)

    async def _close_idle(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            open_ = self.connections
            self._active_at = {protocol: self._last_active(protocol) for protocol in open_}
            for protocol in open_:
                if time.monotonic() - self._active_at[protocol] > IDLE_SECONDS:
                    _abort(protocol)

    @property
    def connections(self) -> list[web.RequestHandler]:
        """Those that are open."""
        server = self._runner.server  # lists also those that were lost while their response was being made
        return [protocol for protocol in server.connections if protocol.transport is not None] if server else []

    def _last_active(self, protocol: object) -> float:
        return self._active_at.setdefault(protocol, time.monotonic())


def _abort(protocol: web.RequestHandler) -> None:
    # Not closed: that would wait until the client has read what was sent.
    if isinstance(protocol.transport, asyncio.WriteTransport):
        protocol.transport.abort()
