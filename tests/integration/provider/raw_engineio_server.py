"""A server that sends hand-written Engine.IO, so that a test can send anything at any moment."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import WSMsgType, web

from ingestor.core.entries import Fact, Frame, FrameRun

Talk = Callable[["ClientSocket"], Awaitable[None]]
WAIT_SECONDS = 10


class ClientSocket:
    """One websocket on the server's side."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self.request = request
        self.received: list[str] = []  # all messages but pings and pongs
        self.pings = 0
        self.pongs = 0
        self.closed = asyncio.Event()
        self.close_code: int | None = None
        self._socket = socket
        self._changed = asyncio.Event()

    async def send(self, *messages: str | bytes) -> None:
        for message in messages:
            if isinstance(message, str):
                await self._socket.send_str(message)
            else:
                await self._socket.send_bytes(message)

    async def close(self) -> None:
        """Close the websocket with a closing handshake."""
        await self._socket.close()

    def abort(self) -> None:
        """Drop the TCP connection."""
        assert self.request.transport is not None
        self.request.transport.abort()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; checked after each message."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def requests(self, event_name: str) -> list[tuple[int, dict[str, Any]]]:
        """Return (ack id, payload) of every event of this name so far."""
        found = []
        for text in self.received:
            ack_id, bracket, rest = text.removeprefix("42").partition("[")
            if text.startswith("42") and bracket and (event := json.loads("[" + rest))[0] == event_name:
                found.append((int(ack_id), event[1]))
        return found

    async def acknowledge(self, count: int = 1) -> None:
        """Wait for this many subscriptions, and acknowledge them."""
        await self.until(lambda: len(self.requests("subscribe")) >= count)
        for ack_id, _ in self.requests("subscribe"):
            await self.send(f"43{ack_id}[null]")

    async def receive_all(self) -> None:
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            if message.data == "2":
                self.pings += 1
            elif message.data == "3":
                self.pongs += 1
            else:
                self.received.append(message.data)
            self._changed.set()
        self.close_code = self._socket.close_code
        self.closed.set()
        self._changed.set()


class RawServer:
    """``async with RawServer(talk) as server``: sends the handshake of its generation, then calls ``talk``."""

    def __init__(
        self,
        talk: Talk | None = None,
        *,
        generation: str = "4",
        greets: bool = True,
        ping_interval_seconds: float = 25,
        ping_timeout_seconds: float = 20,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.clients: list[ClientSocket] = []
        self.probes = 0
        self.logins = 0
        self.status = status  # answers every websocket with this instead
        self.greets = greets
        self._headers = headers or {}
        self._talk = talk
        self._generation = generation
        self._open = json.dumps(
            {
                "sid": "raw",
                "upgrades": [],
                "pingInterval": int(ping_interval_seconds * 1000),
                "pingTimeout": int(ping_timeout_seconds * 1000),
            }
        )

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/socket.io/", self._serve)
        app.router.add_post("/jwt", self._login)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, max_line_size=65536)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            if client.request.transport is not None:
                client.abort()
        await self._runner.cleanup()

    async def client(self, number: int = 1) -> ClientSocket:
        """Return the client with this number, once it has connected."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.clients) < number:
                await asyncio.sleep(0.005)
        return self.clients[number - 1]

    async def _login(self, _: web.Request) -> web.Response:
        self.logins += 1
        return web.json_response({"token": "any"})

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("transport") == "polling":
            self.probes += 1
            length = "" if self._generation == "4" else f"{len(self._open) + 1}:"
            return web.Response(text=f"{length}0{self._open}")
        if self.status is not None:
            return web.Response(status=self.status, text="no", headers=self._headers)
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        client = ClientSocket(socket, request)
        self.clients.append(client)
        listening = asyncio.create_task(client.receive_all())
        try:
            if self.greets:
                await self.greet(client)
            if self._talk is not None:
                await self._talk(client)
            await client.closed.wait()
        except ConnectionError:
            pass  # the client closed the connection, as some tests intend
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return socket

    async def greet(self, client: ClientSocket) -> None:
        """Send OPEN and CONNECT as this generation does."""
        await client.send(f"0{self._open}")
        if self._generation == "3":
            await client.send("40")
            return
        await client.until(lambda: "40" in [text[:2] for text in client.received])
        await client.send('40{"sid":"raw"}')


class Memory:
    """A sink and a listener for facts: all entries in one list, in order."""

    def __init__(self) -> None:
        self.all: list[Frame | Fact] = []
        self._open_runs: list[Callable[[], object]] = []
        self.congested = False
        self.synced = asyncio.Event()
        self.synced.set()
        self.has_space = asyncio.Event()
        self.fault: Exception | None = None
        self._changed = asyncio.Event()

    def append(self, item: FrameRun | Frame | Fact) -> int:
        if not isinstance(item, FrameRun):
            self._end_runs()
        if self.fault is not None and not isinstance(item, Fact):
            raise self.fault
        self.all += item.frames() if isinstance(item, FrameRun) else [item]
        self._changed.set()
        return len(self.all)

    def begin_run(self, end: Callable[[], object]) -> None:
        self._open_runs.append(end)
        asyncio.get_running_loop().call_soon(self._end_runs)

    def _end_runs(self) -> None:
        while self._open_runs:
            self._open_runs.pop(0)()

    @property
    def head(self) -> int:
        return len(self.all)

    async def wait_for_space(self) -> None:
        await self.has_space.wait()

    async def durable(self, seq: int) -> None:
        await self.synced.wait()

    @property
    def frames(self) -> list[Frame]:
        return [entry for entry in self.all if isinstance(entry, Frame)]

    @property
    def texts(self) -> list[str]:
        return [frame.text for frame in self.frames]

    def facts(self, *kinds: str) -> list[Fact]:
        return [entry for entry in self.all if isinstance(entry, Fact) and (not kinds or entry.kind in kinds)]

    async def until(self, condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        """Wait until the condition holds; checked after each entry."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()
