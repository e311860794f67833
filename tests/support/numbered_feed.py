"""A provider that knows what the daemon must have: every event is numbered, and of some a durable receipt is wanted.

An acknowledgement that a server asks for is sent after the fsync. So whatever was sent on a connection up to an
acknowledged event has been received, and must be in the tables whatever happens to the daemon then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import socketio
from aiohttp import web

PATH = "/real-time/crowd-sentiment"
TICKERS = ("AAPL", "ON")
KEY = "the-key-of-this-feed"
START = datetime(2026, 1, 5, tzinfo=UTC)  # ts of event 0; each event has a millisecond of its own
RESTATED = START - timedelta(days=30)  # ts of the first value that is said again and again, each time another
RESTATED_TIMES = 20
WINDOW_EVENTS = 30  # what came last is said once more to whoever subscribes


class Subscriber:
    """One subscriber's connection: what it wants, and what it was sent and has not acknowledged, in order."""

    def __init__(self) -> None:
        self.tickers: set[str] = set()
        self.window_sent: set[str] = set()  # those that have had their window
        self.sent: list[int] = []


class NumberedFeed:
    """``async with NumberedFeed() as feed``: sends ``rate`` events a second to every subscriber; rate 0 is silence.

    ``one_row``: each event is one new value and nothing else, as in a calm market.
    """

    def __init__(self, *, rate: float = 300, ack_every: int = 7, one_row: bool = False) -> None:
        self.rate = rate
        self.event_count = 0  # events so far; they are numbered from 0
        self.acknowledged: set[int] = set()  # what some daemon has said to be durable
        self.acknowledged_at = 0.0  # time.monotonic() of the last one
        self.ack_delays: list[
            float
        ] = []  # seconds from each event that wanted an acknowledgement to that, fsync included
        self.accepts_logins = True  # else every login is refused
        self._ack_every = ack_every
        self._one_row = one_row
        self._subscribers: dict[str, Subscriber] = {}  # by sid

    async def __aenter__(self) -> Self:
        silent = logging.getLogger("tests.feed")
        silent.setLevel(logging.CRITICAL + 1)
        self._server = socketio.AsyncServer(async_mode="aiohttp", logger=silent, engineio_logger=silent)
        self._server.on("connect", self._on_connect)
        self._server.on("disconnect", self._on_disconnect)
        self._server.on("subscribe", self._on_subscribe)
        app = web.Application()
        app.router.add_post("/jwt", self._login)
        self._server.attach(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._sending = asyncio.create_task(self._send_for_ever())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sending.cancel()
        await asyncio.wait([self._sending])
        for sid in list(self._subscribers):
            await self._server.disconnect(sid)
        await self._server.shutdown()
        await self._runner.cleanup()
        if not self._sending.cancelled():
            self._sending.result()  # raises what had ended it

    @property
    def subscribed(self) -> int:
        """How many subscriptions there are now."""
        return sum(len(subscriber.tickers) for subscriber in self._subscribers.values())

    def rows(self, number: int, ticker: str) -> list[dict[str, Any]]:
        """The rows of an event: a value of its own, and one that restates what other events said."""
        own = _row(START + timedelta(milliseconds=number), ticker, number)
        if self._one_row:
            return [own]
        return [own, _row(RESTATED + timedelta(minutes=number // RESTATED_TIMES), ticker, number)]

    # -- what it hears

    async def _login(self, _: web.Request) -> web.Response:
        return web.json_response({"token": "any"}) if self.accepts_logins else web.Response(status=503)

    def _on_connect(self, sid: str, *_: object) -> None:
        self._subscribers[sid] = Subscriber()

    def _on_disconnect(self, sid: str, *_: object) -> None:
        self._subscribers.pop(sid, None)

    def _on_subscribe(self, sid: str, wish: dict[str, Any]) -> None:
        self._subscribers[sid].tickers.add(wish["params"]["ticker"])

    def _on_acknowledgement(self, subscriber: Subscriber, upto: int) -> Callable[..., None]:
        sent_at = time.monotonic()

        def acknowledged(*_: object) -> None:
            done = bisect_right(subscriber.sent, upto)
            self.acknowledged.update(subscriber.sent[:done])
            del subscriber.sent[:done]
            self.acknowledged_at = time.monotonic()
            self.ack_delays.append(self.acknowledged_at - sent_at)

        return acknowledged

    # -- what it says

    async def _send_for_ever(self) -> None:
        due, before = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            due = due + (now - before) * self.rate if self.subscribed else 0.0
            before = now
            while due >= 1:
                due -= 1
                await self._send_next()

    async def _send_next(self) -> None:
        number, self.event_count = self.event_count, self.event_count + 1
        ticker = TICKERS[number % len(TICKERS)]
        rows = self.rows(number, ticker)
        for sid, subscriber in list(self._subscribers.items()):
            if ticker in subscriber.tickers:
                again = self._window(number, ticker) if self._is_new(subscriber, ticker) else []
                await self._send(sid, subscriber, number, again + rows)

    def _is_new(self, subscriber: Subscriber, ticker: str) -> bool:
        new = ticker not in subscriber.window_sent
        subscriber.window_sent.add(ticker)
        return new and not self._one_row

    async def _send(self, sid: str, subscriber: Subscriber, number: int, rows: list[dict[str, Any]]) -> None:
        subscriber.sent.append(number)
        wanted = number % self._ack_every == 0
        callback = self._on_acknowledgement(subscriber, number) if wanted else None
        await self._server.emit("res", rows, to=sid, callback=callback)

    def _window(self, number: int, ticker: str) -> list[dict[str, Any]]:
        """What the newest events before this one said of the ticker, without what they restated."""
        first = max(number - WINDOW_EVENTS, number % 2)
        return [self.rows(earlier, ticker)[0] for earlier in range(first, number, len(TICKERS))]


def number_of(body: list[dict[str, Any]]) -> int:
    """The event whose payload this is. Its own value is its number, and stands last or last but one."""
    return int(body[-1]["average_sentiment"])


def _row(ts: datetime, ticker: str, value: float) -> dict[str, Any]:
    stamp = ts.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"ts": stamp, "ticker": ticker, "average_sentiment": value}
