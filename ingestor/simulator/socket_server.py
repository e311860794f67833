"""The python-socketio server on aiohttp underneath: packets out, transports ended. Knows nothing of the provider."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import socketio
from aiohttp import web
from engineio.exceptions import SocketIsClosedError

_HEADER_BYTES = 65_536  # a token of 9 kB travels in the request line
_MESSAGE_BYTES = 100_000_000
_QUEUED_MESSAGES = 1_000  # ``room`` waits while a session has more than this to send


class SocketServer:
    """One listening server; made anew for every start."""

    def __init__(self, app: web.Application, *, ping_interval_seconds: int, ping_timeout_seconds: int) -> None:
        # With `logger=False` the library would put a handler of its own on stderr.
        silent = logging.getLogger("ingestor.simulator")
        silent.setLevel(logging.CRITICAL + 1)
        self._server = socketio.AsyncServer(
            async_mode="aiohttp",
            logger=silent,
            engineio_logger=silent,
            ping_interval=ping_interval_seconds,
            ping_timeout=ping_timeout_seconds,
            max_http_buffer_size=_MESSAGE_BYTES,
        )
        self._server.attach(app)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=0.2,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        self.unanswered = self._server.not_handled  # a handler that returns it acknowledges nothing

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        """Have an event of the clients handled; a tuple that is returned becomes the acknowledgement."""
        self._server.on(event, handler)

    async def listen(self, port: int) -> int:
        """Listen on loopback; the port that it became."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening. Transports that are still open are cut."""
        await self._server.shutdown()
        await self._runner.cleanup()

    async def send(self, sid: str, text: str) -> bool:
        """Put one Socket.IO packet on the wire as it stands; False if the session has just ended."""
        engine = self._engine(sid)
        if engine is None:
            return False
        try:
            await self._server.eio.send(engine.sid, text)
        except SocketIsClosedError:
            return False
        return True

    async def room(self, sid: str) -> None:
        """Let others run, and wait until the session's queue is short."""
        await asyncio.sleep(0)
        # The library's queue has no event to wait for.
        while (engine := self._engine(sid)) and engine.queue.qsize() > _QUEUED_MESSAGES:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def kick(self, sid: str) -> None:
        """Send a Socket.IO disconnect (``41``); the transport stays for the client to close."""
        await self._server.disconnect(sid)

    async def close(self, sid: str) -> None:
        """Send an Engine.IO close (``1``), as a server does that is restarted."""
        if engine := self._engine(sid):
            await engine.close(wait=False)

    def _engine(self, sid: str) -> Any:
        return self._server.eio.sockets.get(self._server.manager.eio_sid_from_sid(sid, "/"))


def reset_connection(request: web.Request) -> None:
    """End a connection by a TCP reset."""
    transport = request.transport
    if transport is None:
        return  # closed already
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
