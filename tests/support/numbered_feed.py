"""A provider that knows which events the daemon must not lose: events are numbered, and some request acknowledgements.

The daemon sends a requested acknowledgement after the fsync. So everything sent on a connection up to an acknowledged
event is durable, and must reach the tables whatever happens to the daemon afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import socketio
from aiohttp import web

from .expected_rows import PADDING

PATH = "/real-time/crowd-sentiment"
TICKERS = ("AAPL", "ON")
KEY = "the-key-of-this-feed"
START = datetime(2026, 1, 5, tzinfo=UTC)  # ts of event 0; each event has a millisecond of its own
RESTATED = START - timedelta(days=30)  # ts of the first value that is restated, each time with another value
RESTATED_TIMES = 20
WINDOW_EVENTS = 30  # how many of the newest events a new subscription gets again


class Subscriber:
    """A client's connection: its tickers, and the events sent but not yet acknowledged, in order."""

    def __init__(self) -> None:
        self.tickers: set[str] = set()
        self.window_sent: set[str] = set()  # tickers whose window was sent
        self.sent: list[int] = []


class NumberedFeed:
    """``async with NumberedFeed() as feed``: sends ``rate`` events per second to every subscriber; 0 sends nothing.

    Every ``ack_every``-th event requests an acknowledgement. ``one_row``: each event contains only one new value.
    ``padding_bytes``: of random text in each event, which hardly compresses.
    """

    def __init__(self, *, rate: float = 300, ack_every: int = 7, one_row: bool = False, padding_bytes: int = 0) -> None:
        self.rate = rate
        self.padding_bytes = padding_bytes
        self.event_count = 0  # also the number of the next event
        self.acknowledged: set[int] = set()  # events that a daemon has reported as durable
        self.acknowledged_at = 0.0  # time.monotonic() of the last one
        self.ack_delays: list[float] = []  # seconds from an event to its acknowledgement, fsync included
        self.accepts_logins = True  # if False, every login is rejected
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
        self._sending = asyncio.create_task(self._send_events())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sending.cancel()
        await asyncio.wait([self._sending])
        for sid in list(self._subscribers):
            await self._server.disconnect(sid)
        await self._server.shutdown()
        await self._runner.cleanup()
        if not self._sending.cancelled():
            self._sending.result()  # raises the exception that ended the task

    @property
    def subscribed(self) -> int:
        """The number of subscriptions."""
        return sum(len(subscriber.tickers) for subscriber in self._subscribers.values())

    def rows(self, number: int, ticker: str) -> list[dict[str, Any]]:
        """Return the rows of an event: a new value, and one that restates a value of earlier events."""
        own = _row(START + timedelta(milliseconds=number), ticker, number)
        if self._one_row:
            return [own]
        return [own, _row(RESTATED + timedelta(minutes=number // RESTATED_TIMES), ticker, number)]

    # -- requests

    async def _login(self, _: web.Request) -> web.Response:
        return web.json_response({"token": "any"}) if self.accepts_logins else web.Response(status=503)

    def _on_connect(self, sid: str, *_: object) -> None:
        self._subscribers[sid] = Subscriber()

    def _on_disconnect(self, sid: str, *_: object) -> None:
        self._subscribers.pop(sid, None)

    def _on_subscribe(self, sid: str, request: dict[str, Any]) -> None:
        self._subscribers[sid].tickers.add(request["params"]["ticker"])

    def _on_acknowledgement(self, subscriber: Subscriber, upto: int) -> Callable[..., None]:
        sent_at = time.monotonic()

        def acknowledged(*_: object) -> None:
            done = bisect_right(subscriber.sent, upto)
            self.acknowledged.update(subscriber.sent[:done])
            del subscriber.sent[:done]
            self.acknowledged_at = time.monotonic()
            self.ack_delays.append(self.acknowledged_at - sent_at)

        return acknowledged

    # -- events

    async def _send_events(self) -> None:
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
                window = self._window(number, ticker) if self._is_new(subscriber, ticker) else []
                await self._send(sid, subscriber, number, window + rows)

    def _is_new(self, subscriber: Subscriber, ticker: str) -> bool:
        new = ticker not in subscriber.window_sent
        subscriber.window_sent.add(ticker)
        return new and not self._one_row

    async def _send(self, sid: str, subscriber: Subscriber, number: int, rows: list[dict[str, Any]]) -> None:
        if self.padding_bytes:
            rows = [*rows[:-1], rows[-1] | {PADDING: b64encode(os.urandom(self.padding_bytes * 3 // 4)).decode()}]
        subscriber.sent.append(number)
        requests_ack = number % self._ack_every == 0
        callback = self._on_acknowledgement(subscriber, number) if requests_ack else None
        await self._server.emit("res", rows, to=sid, callback=callback)

    def _window(self, number: int, ticker: str) -> list[dict[str, Any]]:
        """Return the new values of the ticker in the newest events before this one."""
        first = max(number - WINDOW_EVENTS, number % 2)
        return [self.rows(earlier, ticker)[0] for earlier in range(first, number, len(TICKERS))]


def number_of(body: list[dict[str, Any]]) -> int:
    """Return the number of the event with this payload, which is the value of its last row."""
    return int(body[-1]["average_sentiment"])


def _row(ts: datetime, ticker: str, value: float) -> dict[str, Any]:
    stamp = ts.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"ts": stamp, "ticker": ticker, "average_sentiment": value}
