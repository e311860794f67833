"""The python-socketio server on aiohttp that the simulator sends with."""

from __future__ import annotations

import logging
from typing import Any

import socketio
from aiohttp import web
from engineio.exceptions import SocketIsClosedError

_MAX_LINE_BYTES = 65_536  # a token of 9 kB is part of the request line
_MAX_MESSAGE_BYTES = 100_000_000


class SocketServer:
    """One listening server; a new one is created for every start."""

    def __init__(self, app: web.Application, *, ping_interval_seconds: float, ping_timeout_seconds: float) -> None:
        # With `logger=False` the library would install a handler on stderr.
        silent = logging.getLogger("ingestor.simulator")
        silent.setLevel(logging.CRITICAL + 1)
        self.sio = socketio.AsyncServer(
            async_mode="aiohttp",
            logger=silent,
            engineio_logger=silent,
            ping_interval=ping_interval_seconds,
            ping_timeout=ping_timeout_seconds,
            max_http_buffer_size=_MAX_MESSAGE_BYTES,
        )
        self.sio.attach(app)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.2, max_line_size=_MAX_LINE_BYTES, max_field_size=_MAX_LINE_BYTES
        )

    async def listen(self, port: int) -> int:
        """Listen on loopback; return the port."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening and abort the transports that are still open."""
        await self.sio.shutdown()
        await self._runner.cleanup()

    async def send(self, sid: str, text: str) -> bool:
        """Send one Socket.IO packet as it is; return False if the session is closed."""
        engine = self.engine_socket(sid)
        if engine is None:
            return False
        try:
            await self.sio.eio.send(engine.sid, text)
        except SocketIsClosedError:
            return False
        return True

    async def close(self, sid: str) -> None:
        """Send an Engine.IO close packet (``1``), as a server does that restarts."""
        if engine := self.engine_socket(sid):
            await engine.close(wait=False)

    def engine_socket(self, sid: str) -> Any:
        """Return the Engine.IO socket of a session; None if it is closed."""
        return self.sio.eio.sockets.get(self.sio.manager.eio_sid_from_sid(sid, "/"))
