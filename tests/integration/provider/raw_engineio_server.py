"""A server that speaks Engine.IO by hand, so that a test can say anything at any moment, in order or out of it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import WSMsgType, web

from ingestor.core.entries import Fact, Frame

Talk = Callable[["Visitor"], Awaitable[None]]
WAIT_SECONDS = 10


class Visitor:
    """One websocket as the server sees it."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self.request = request
        self.heard: list[str] = []  # everything but pings and pongs
        self.pings = 0
        self.pongs = 0
        self.gone = asyncio.Event()
        self.close_code: int | None = None
        self._socket = socket
        self._news = asyncio.Event()

    async def say(self, *messages: str | bytes) -> None:
        for message in messages:
            if isinstance(message, str):
                await self._socket.send_str(message)
            else:
                await self._socket.send_bytes(message)

    async def leave(self) -> None:
        """Close the websocket in order."""
        await self._socket.close()

    def cut(self) -> None:
        """Drop the TCP connection."""
        assert self.request.transport is not None
        self.request.transport.abort()

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until it holds of what was heard."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not true():
                self._news.clear()
                await self._news.wait()

    def asked(self, verb: str) -> list[tuple[int, dict[str, Any]]]:
        """(ack id, wish) of every such event so far."""
        wishes = []
        for text in self.heard:
            number, bracket, rest = text.removeprefix("42").partition("[")
            if text.startswith("42") and bracket and (event := json.loads("[" + rest))[0] == verb:
                wishes.append((int(number), event[1]))
        return wishes

    async def acknowledge(self, count: int = 1) -> None:
        """Wait for so many subscriptions, and confirm them."""
        await self.until(lambda: len(self.asked("subscribe")) >= count)
        for number, _ in self.asked("subscribe"):
            await self.say(f"43{number}[null]")

    async def listen(self) -> None:
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            if message.data == "2":
                self.pings += 1
            elif message.data == "3":
                self.pongs += 1
            else:
                self.heard.append(message.data)
            self._news.set()
        self.close_code = self._socket.close_code
        self.gone.set()
        self._news.set()


class RawServer:
    """``async with RawServer(talk) as server``: greets as generation 4 or 3 does, then lets ``talk`` speak."""

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
        self.visitors: list[Visitor] = []
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
        for visitor in self.visitors:
            if visitor.request.transport is not None:
                visitor.cut()
        await self._runner.cleanup()

    async def visitor(self, number: int = 1) -> Visitor:
        """The newest visitor, once there have been so many."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.visitors) < number:
                await asyncio.sleep(0.005)
        return self.visitors[number - 1]

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
        visitor = Visitor(socket, request)
        self.visitors.append(visitor)
        listening = asyncio.create_task(visitor.listen())
        try:
            if self.greets:
                await self.greet(visitor)
            if self._talk is not None:
                await self._talk(visitor)
            await visitor.gone.wait()
        except ConnectionError:
            pass  # the client has gone, as some tests mean it to
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return socket

    async def greet(self, visitor: Visitor) -> None:
        """OPEN and CONNECT as this generation has them."""
        await visitor.say(f"0{self._open}")
        if self._generation == "3":
            await visitor.say("40")
            return
        await visitor.until(lambda: "40" in [text[:2] for text in visitor.heard])
        await visitor.say('40{"sid":"raw"}')


class Memory:
    """A sink and a listener for facts: everything in one list, in the order in which it came."""

    def __init__(self) -> None:
        self.all: list[Frame | Fact] = []
        self.congested = False
        self.synced = asyncio.Event()
        self.synced.set()
        self.roomy = asyncio.Event()
        self.fault: Exception | None = None
        self._news = asyncio.Event()

    def append(self, what: Frame | Fact) -> int:
        if self.fault is not None and isinstance(what, Frame):
            raise self.fault
        self.all.append(what)
        self._news.set()
        return len(self.all)

    @property
    def head(self) -> int:
        return len(self.all)

    async def wait_for_space(self) -> None:
        await self.roomy.wait()

    async def durable(self, seq: int) -> None:
        await self.synced.wait()

    @property
    def frames(self) -> list[Frame]:
        return [one for one in self.all if isinstance(one, Frame)]

    @property
    def texts(self) -> list[str]:
        return [frame.text for frame in self.frames]

    def facts(self, *kinds: str) -> list[Fact]:
        return [one for one in self.all if isinstance(one, Fact) and (not kinds or one.kind in kinds)]

    async def until(self, true: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        """Wait until it holds; looks again whenever something was appended."""
        async with asyncio.timeout(seconds):
            while not true():
                self._news.clear()
                await self._news.wait()
