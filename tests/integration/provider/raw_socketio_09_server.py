"""A server that sends hand-written Socket.IO 0.9, so that a test can send anything at any moment."""

from __future__ import annotations

import asyncio
import ssl
from typing import Self

from aiohttp import web

from .raw_engineio_server import WAIT_SECONDS, ClientSocket, Talk


class RawSocketIo09Server:
    """``async with RawSocketIo09Server(talk) as server``: answers the handshake, sends ``1::``, then calls ``talk``.

    ``handshake`` None: never answered. ``upgrades`` False: the websocket is answered by FIN. ``prefix`` is the path of
    the API. The server closes as the real ones do, without a websocket close frame.
    """

    def __init__(
        self,
        talk: Talk | None = None,
        *,
        handshake: str | None = "a/b?c:60:60:websocket,xhr-polling",
        status: int = 200,
        greets: bool = True,
        upgrades: bool = True,
        prefix: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.clients: list[ClientSocket] = []
        self.handshakes: list[web.Request] = []
        self.cookies: dict[str, str] = {}  # that the handshake sets
        self.websocket_status: int | None = None  # answers the websocket with this instead
        self._talk = talk
        self._handshake = handshake
        self._status = status
        self._greets = greets
        self._upgrades = upgrades
        self._prefix = prefix
        self._tls = tls

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get(f"{self._prefix}/socket.io/1/", self._answer_handshake)
        app.router.add_get(f"{self._prefix}/socket.io/1/websocket/{{sid}}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            if client.request.transport is not None:
                client.abort()
        await self._runner.cleanup()

    async def client(self) -> ClientSocket:
        """Return the first client, once it has connected."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not self.clients:
                await asyncio.sleep(0.005)
        return self.clients[0]

    async def _answer_handshake(self, request: web.Request) -> web.Response:
        self.handshakes.append(request)
        if self._handshake is None:
            await asyncio.sleep(WAIT_SECONDS)
        response = web.Response(status=self._status, text=self._handshake)
        for name, value in self.cookies.items():
            response.set_cookie(name, value)
        return response

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if not self._upgrades:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if self.websocket_status is not None:
            return web.Response(status=self.websocket_status)
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        client = ClientSocket(socket, request)
        self.clients.append(client)
        listening = asyncio.create_task(client.receive_all())
        try:
            if self._greets:
                await client.send("1::")
            if self._talk is not None:
                await self._talk(client)
            await client.closed.wait()
        except ConnectionError:
            pass  # the client closed the connection, as some tests intend
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return socket


def end_by_fin(client: ClientSocket) -> None:
    """Close the TCP connection, without a websocket close frame."""
    assert client.request.transport is not None
    client.request.transport.close()


def send_bytes_as_they_are(client: ClientSocket, data: bytes) -> None:
    """Write to the TCP connection."""
    assert isinstance(client.request.transport, asyncio.WriteTransport)
    client.request.transport.write(data)
