"""The provider as the world has it: it knows what it said and when, and each connection as a websocket in memory."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from aiohttp import WSMessage, WSMsgType

from ingestor.errors import RestUnavailable
from ingestor.provider.rest_api import RestRequest, RestResponse

from .virtual_time import Clocks

PING_SECONDS = 5.0
PING_TIMEOUT_SECONDS = 4.0
WINDOW_ROWS = 20
NOTICE_SECONDS = 1.2  # between two checks of the clocks, and a bit
FIELDS = {"/real-time/crowd-sentiment": "average_sentiment", "/real-time/tweet-volume": "volume"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Said(NamedTuple):
    """One row that the provider said."""

    path: str
    ticker: str
    ts_us: int  # its own clock, which is right
    wall_us: int  # what the daemons' wall clock showed
    clock_era: int  # how often that had been set before
    is_repeated: bool  # whether that had shown as much before it was set back
    is_unnoticed: bool  # whether it was set so recently that no daemon may have noticed

    @property
    def row(self) -> dict[str, Any]:
        at = _EPOCH + timedelta(microseconds=self.ts_us)
        return {"ts": f"{at:%Y-%m-%dT%H:%M:%S.%f}Z", "ticker": self.ticker, FIELDS[self.path]: self.ts_us % 997}


class Provider:
    """Says rows, answers subscribes, pings."""

    def __init__(self, clocks: Clocks, *, window: bool, window_delay_seconds: float) -> None:
        self.clocks = clocks
        self.clock_era = 0
        self._highest_wall_us = 0
        self._stepped_at = -NOTICE_SECONDS
        self.window = window  # whether a subscribe is answered with a window of rows
        self.window_delay_seconds = window_delay_seconds  # of a window: it may come from a cache
        self.said: list[Said] = []
        self.sockets: list[ServerSocket] = []
        self.reachable = True
        self.answers = "ok"  # ok, late, none, refused

    def say(self, path: str, ticker: str) -> None:
        wall_us = self.clocks.wall_us
        is_unnoticed = self.clocks.now < self._stepped_at + NOTICE_SECONDS
        is_repeated = wall_us <= self._highest_wall_us
        said = Said(path, ticker, self.clocks.true_us, wall_us, self.clock_era, is_repeated, is_unnoticed)
        self.said.append(said)
        for socket in self.sockets:
            if (path, ticker) in socket.subscribed:
                socket.deliver(_event([said.row]))

    def note_clock_step(self) -> None:
        """Note that the daemons' wall clock is about to be set."""
        self.clock_era += 1
        self._stepped_at = self.clocks.now
        self._highest_wall_us = max(self._highest_wall_us, self.clocks.wall_us)

    def connect(self, url: str, host: str) -> ServerSocket:
        if not self.reachable:
            raise aiohttp.ClientConnectionError("connection refused")
        assert "token=" in urlsplit(url).query
        socket = ServerSocket(self, host)
        self.sockets.append(socket)
        return socket

    def of(self, host: str) -> list[ServerSocket]:
        return [socket for socket in self.sockets if socket.host == host]

    def newest(self, path: str, ticker: str) -> list[Said]:
        """Return a window of rows: they are all that were said between the first and the last of them."""
        until_us = self.clocks.true_us - round(self.window_delay_seconds * 1_000_000)
        rows = [said for said in self.said if (said.path, said.ticker) == (path, ticker) and said.ts_us <= until_us]
        return rows[-WINDOW_ROWS:]


def _event(rows: list[dict[str, Any]]) -> str:
    return f'42["res",{json.dumps(rows)}]'


class ServerSocket:
    """One connection, with what aiohttp's websocket has and the library uses."""

    closed = False

    def __init__(self, provider: Provider, host: str) -> None:
        self.host = host
        self.subscribed: set[tuple[str, str]] = set()
        self.dead = False  # half-open: nothing comes through in either direction, and neither end notices
        self._provider = provider
        self._inbox: deque[WSMessage] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        settings = {"pingInterval": PING_SECONDS * 1000, "pingTimeout": PING_TIMEOUT_SECONDS * 1000}
        self.deliver("0" + json.dumps({"sid": "e", "upgrades": [], **settings}))
        self._ping = self._loop.call_later(PING_SECONDS, self._send_ping)

    # -- the server's end

    def deliver(self, text: str) -> None:
        if not (self.dead or self.closed):
            self._put(WSMessage(WSMsgType.TEXT, text, None))

    def cut(self, how: str) -> None:
        """End the connection: ``reset``, ``closed`` (websocket), ``kicked`` (Socket.IO)."""
        if self.dead or self.closed:
            return
        if how == "kicked":
            self.deliver("41")
        elif how == "closed":
            self._put(WSMessage(WSMsgType.CLOSE, 1000, None))
        else:
            self._inbox.clear()
            self._put(WSMessage(WSMsgType.CLOSED, None, None))
        self._forget()

    def _put(self, message: WSMessage) -> None:
        self._inbox.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _send_ping(self) -> None:
        self.deliver("2")
        self._ping = self._loop.call_later(PING_SECONDS, self._send_ping)

    def _forget(self) -> None:
        self._ping.cancel()
        self.subscribed.clear()
        if self in self._provider.sockets:
            self._provider.sockets.remove(self)

    def _receive(self, text: str) -> None:
        if text in ("40", "40{}"):
            self.deliver('40{"sid":"s"}')
        elif text.startswith("42"):
            number = text[2 : text.index("[")]
            event, request = json.loads(text[text.index("[") :])
            self._answer(number, event, (request["path"], request["params"]["ticker"]))
        elif text == "1":
            self._forget()

    def _answer(self, number: str, event: str, key: tuple[str, str]) -> None:
        answers = self._provider.answers
        if event != "subscribe":
            self.subscribed.discard(key)
            self.deliver(f"43{number}[]")
        elif answers == "refused":
            self.deliver(f'43{number}["not now"]')
        elif answers == "late":
            self._loop.call_later(1.5, self._accept, number, key)
        elif answers == "ok":
            self._accept(number, key)

    def _accept(self, number: str, key: tuple[str, str]) -> None:
        if self.dead or self.closed or self not in self._provider.sockets:
            return
        self.subscribed.add(key)
        self.deliver(f"43{number}[]")
        if self._provider.window and (rows := self._provider.newest(*key)):
            self.deliver(_event([said.row for said in rows]))

    # -- the client's end

    async def receive(self) -> WSMessage:
        while not self._inbox:
            if self.closed:
                return WSMessage(WSMsgType.CLOSED, None, None)
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._inbox.popleft()

    async def send_str(self, text: str) -> None:
        if self.closed:
            raise ConnectionResetError("Cannot write to closing transport")
        if not self.dead:
            self._receive(text)

    async def send_bytes(self, data: bytes) -> None:
        raise AssertionError("the client sends text only")

    async def close(self, **_: Any) -> None:
        if self.dead and not self.closed:
            self.abandon()
            await asyncio.sleep(3600)  # for an answer to the closing handshake
        self.abandon()

    def abandon(self) -> None:
        """The client is gone."""
        self.closed = True
        self._forget()


class Rest:
    """The REST client, of which a repair uses this. It answers with windows, and has no history yet."""

    pause_seconds = 0.0

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def get(self, request: RestRequest, *, can_split: bool = False) -> RestResponse:
        sent_us = self._provider.clocks.wall_us
        if not (self._provider.reachable and request.path in FIELDS):
            raise RestUnavailable("connection refused")
        rows = [said.row for said in self._provider.newest(request.path, request.params["ticker"])]
        return RestResponse(text=json.dumps(rows), sent_us=sent_us)

    def cancel(self) -> None:
        pass


class ClientSession:
    """What the library and our wrapper use of an aiohttp session."""

    closed = False

    def __init__(self, connect: Callable[[str], ServerSocket]) -> None:
        self._connect = connect

    async def ws_connect(self, url: str, **_: Any) -> ServerSocket:
        return self._connect(url)

    async def close(self) -> None:
        self.closed = True
