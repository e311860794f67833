"""The python-socketio server on aiohttp that the simulator sends with: Socket.IO 3.x and 4.x."""

from __future__ import annotations

import logging
from typing import Any, Protocol
from urllib.parse import parse_qs

import socketio
from aiohttp import web
from engineio.exceptions import SocketIsClosedError

MAX_MESSAGE_BYTES = 100_000_000


class SocketListener(Protocol):
    """Receives what the clients of a socket server do."""

    def why_refused(self, token: str) -> str | None:
        """Return why a client with this token is refused; None accepts it."""

    def on_connect(self, sid: str, token: str, request: web.Request) -> None:
        """Note a new session. ``request`` is that of its transport."""

    def on_disconnect(self, sid: str) -> None:
        """Note the end of a session."""

    def on_request(self, event: str, sid: str, payload: Any) -> tuple[Any, ...] | None:
        """Answer ``subscribe`` or ``unsubscribe`` with the arguments of the acknowledgement; None: do not answer."""


class SocketServer:
    """The routes of Socket.IO 4 in ``app``; a new one is created for every start."""

    def __init__(
        self,
        app: web.Application,
        listener: SocketListener,
        *,
        ping_interval_seconds: float,
        ping_timeout_seconds: float,
    ) -> None:
        # With `logger=False` the library would install a handler on stderr.
        silent = logging.getLogger("ingestor.simulator")
        silent.setLevel(logging.CRITICAL + 1)
        self._listener = listener
        self._sio = socketio.AsyncServer(
            async_mode="aiohttp",
            logger=silent,
            engineio_logger=silent,
            ping_interval=ping_interval_seconds,
            ping_timeout=ping_timeout_seconds,
            max_http_buffer_size=MAX_MESSAGE_BYTES,
        )
        self._sio.on("connect", self._on_connect)
        self._sio.on("disconnect", lambda sid, _reason: listener.on_disconnect(sid))
        for event in ("subscribe", "unsubscribe"):
            self._sio.on(event, self._answer(event))
        self._sio.attach(app)

    async def stop(self) -> None:
        """Abort the transports that are still open."""
        await self._sio.shutdown()

    async def send_event(self, sid: str, event: str, payload: str) -> bool:
        """Send an event with one argument, as JSON; return False if the session is closed."""
        return await self.send(sid, f'2["{event}",{payload}]')

    async def send(self, sid: str, text: str) -> bool:
        """Send one Socket.IO packet as it is; return False if the session is closed."""
        engine = self._engine_socket(sid)
        if engine is None:
            return False
        try:
            await self._sio.eio.send(engine.sid, text)
        except SocketIsClosedError:
            return False
        return True

    def queued(self, sid: str) -> int:
        """Return how many packets wait to be sent."""
        engine = self._engine_socket(sid)
        return engine.queue.qsize() if engine else 0

    async def kick(self, sid: str) -> None:
        """Disconnect a session with a Socket.IO packet (``41``); the client has to close the transport."""
        await self._sio.disconnect(sid)

    async def close(self, sid: str) -> None:
        """Send an Engine.IO close packet (``1``), as a server does that restarts."""
        if engine := self._engine_socket(sid):
            await engine.close(wait=False)

    def _engine_socket(self, sid: str) -> Any:
        """Return the Engine.IO socket of a session; None if it is closed."""
        return self._sio.eio.sockets.get(self._sio.manager.eio_sid_from_sid(sid, "/"))

    def _on_connect(self, sid: str, environ: dict[str, Any], _auth: object = None) -> None:
        token = parse_qs(environ["QUERY_STRING"]).get("token", [""])[0]
        if reason := self._listener.why_refused(token):
            raise socketio.exceptions.ConnectionRefusedError(reason)
        self._listener.on_connect(sid, token, environ["aiohttp.request"])

    def _answer(self, event: str) -> Any:
        def answer(sid: str, payload: Any) -> Any:
            ack = self._listener.on_request(event, sid, payload)
            return self._sio.not_handled if ack is None else ack

        return answer
