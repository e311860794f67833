"""A small server of Socket.IO 0.9, with websockets only. It sends what the Node servers send, byte for byte.

But for one thing: it refuses a second websocket of a session, which a Node server lets silence the first.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from ingestor.simulator.socket_server import MAX_MESSAGE_BYTES, SocketListener

MAX_HANDSHAKES = 1000  # that are waiting for their websocket; the oldest are forgotten


@dataclass(slots=True, eq=False)
class _Client:
    """A connected client."""

    socket: web.WebSocketResponse
    transport: asyncio.Transport
    alive: asyncio.Event = field(default_factory=asyncio.Event)  # it has answered the last heartbeat


class SocketServer09:
    """The routes of Socket.IO 0.9 in ``app``; a new one is created for every start.

    It sends a heartbeat ``ping_interval_seconds`` after the last answer, and ends a connection that does not answer
    within ``ping_timeout_seconds``. Only the timeout is announced, as on a real server.
    """

    def __init__(
        self,
        app: web.Application,
        listener: SocketListener,
        *,
        ping_interval_seconds: float,
        ping_timeout_seconds: float,
    ) -> None:
        self._listener = listener
        self._interval_seconds = ping_interval_seconds
        self._timeout_seconds = ping_timeout_seconds
        self._tokens: dict[str, str] = {}  # of handshakes whose websocket has not come yet, by session
        self._clients: dict[str, _Client] = {}  # by session
        app.router.add_get("/socket.io/", self._welcome)
        for path in ("/socket.io/1", "/socket.io/1/"):
            app.router.add_get(path, self._shake_hands)
            app.router.add_post(path, self._shake_hands)
        app.router.add_get("/socket.io/1/websocket/{sid}", self._serve)

    async def stop(self) -> None:
        """Disconnect the clients that are still there."""
        for sid in list(self._clients):
            await self.kick(sid)

    async def send_event(self, sid: str, event: str, payload: str) -> bool:
        """Send an event with one argument, as JSON; return False if the session is closed."""
        return await self.send(sid, f'5:::{{"name":"{event}","args":[{payload}]}}')

    async def send(self, sid: str, text: str) -> bool:
        """Send one packet as it is; return False if the session is closed."""
        client = self._clients.get(sid)
        try:
            if client is None:
                return False
            await client.socket.send_str(text)
        except ConnectionError:
            return False
        return True

    def queued(self, sid: str) -> int:
        """Return how many packets wait to be sent: none, because ``send`` itself waits for a slow client."""
        return 0

    async def kick(self, sid: str) -> None:
        """Send ``0::`` and end the connection, without a closing handshake of websockets."""
        await self.send(sid, "0::")
        if client := self._clients.get(sid):
            client.transport.close()

    close = kick  # a server that restarts does the same

    # --- requests ---

    async def _welcome(self, _request: web.Request) -> web.Response:
        return web.Response(text="Welcome to socket.io.")

    async def _shake_hands(self, request: web.Request) -> web.Response:
        token = request.query.get("token", "")
        if self._listener.why_refused(token):
            return web.Response(text="handshake unauthorized", status=403)  # the reason is never told
        sid = secrets.token_urlsafe(15)
        self._tokens[sid] = token
        if len(self._tokens) > MAX_HANDSHAKES:
            del self._tokens[next(iter(self._tokens))]
        return web.Response(text=f"{sid}:{self._timeout_seconds:g}:{self._timeout_seconds:g}:websocket")

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, autoclose=False)
        await socket.prepare(request)
        if request.transport is None:
            return socket  # the client has gone
        sid, client = request.match_info["sid"], _Client(socket, request.transport)
        token = self._tokens.pop(sid, None)
        await socket.send_str("7:::1+0" if token is None else "1::")
        if token is not None:
            self._clients[sid] = client
            self._listener.on_connect(sid, token, request)
            await self._converse(sid, client)
        client.transport.close()
        return socket

    async def _converse(self, sid: str, client: _Client) -> None:
        beating = asyncio.create_task(self._beat(client))
        try:
            async for message in client.socket:
                if message.type is not WSMsgType.TEXT or not await self._handle(sid, client, message.data):
                    break
        except ConnectionError:
            pass  # the client has gone
        finally:
            beating.cancel()
            del self._clients[sid]
            self._listener.on_disconnect(sid)

    async def _beat(self, client: _Client) -> None:
        try:
            while True:
                await asyncio.sleep(self._interval_seconds)
                client.alive.clear()
                await client.socket.send_str("2::")
                async with asyncio.timeout(self._timeout_seconds):
                    await client.alive.wait()
        except (TimeoutError, ConnectionError):
            client.transport.close()

    # --- packets ---

    async def _handle(self, sid: str, client: _Client, text: str) -> bool:
        """Handle ``type:id[+]:endpoint[:data]``. Return False at the end of the session."""
        kind, number, _, data = (*text.split(":", 3), "", "", "")[:4]
        if kind == "2":
            client.alive.set()
        elif kind == "5" and number.endswith("+"):
            await self._answer(sid, client, number[:-1], _event(data))
        elif number:
            await client.socket.send_str(f"6:::{number}")  # without a "+", the server acknowledges by itself
        return kind != "0"

    async def _answer(self, sid: str, client: _Client, number: str, event: Mapping[str, object]) -> None:
        args = event.get("args")
        payload = args[0] if isinstance(args, list) and args else None
        if event.get("name") not in ("subscribe", "unsubscribe"):
            return  # like a server that has no handler for this event
        ack = self._listener.on_request(str(event["name"]), sid, payload)
        if ack is not None:
            await client.socket.send_str(f"6:::{number}+{json.dumps(ack, separators=(',', ':'))}")


def _event(data: str) -> Mapping[str, object]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    return event if isinstance(event, dict) else {}
