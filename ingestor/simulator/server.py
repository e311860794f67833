"""The simulated provider on loopback: logins, REST, and a socket that sends new rows with every tick."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from aiohttp import web

from ingestor.simulator.market import Market, Row, Style, envelope, is_stream
from ingestor.simulator.rest_api import BadRequest, check_key, check_request, historical_buckets, respond
from ingestor.simulator.sessions import ClientSession, SubscribeRequest, parse_request
from ingestor.simulator.socket_server import SocketServer
from ingestor.simulator.socket_server_09 import SocketServer09
from ingestor.simulator.tokens import TokenIssuer

TICKERS = ("AAPL", "TSLA", "ON", "6E_F", "CMGO", "EURAUD", "GOOG", "MSFT")
TOKEN_LIFETIME_SECONDS = 5 * 3600
SocketIoVersion = Literal["4", "0.9"]
_SOCKET_SERVERS: Mapping[SocketIoVersion, type[SocketServer | SocketServer09]] = {
    "4": SocketServer,
    "0.9": SocketServer09,
}
_PING_TIMEOUT_SECONDS: Mapping[SocketIoVersion, float] = {"4": 20, "0.9": 60}  # of their servers
_MAX_LINE_BYTES = 65_536  # a token of 9 kB is part of the request line


class Simulator:
    """A provider of our own: ``async with Simulator(seed=7) as provider: provider.url, provider.api_key``.

    With every tick its time ``now`` (seconds since the epoch) moves by ``step_seconds``. A subscription receives rows
    at once, and again with every tick that starts a new bucket of its path. Buckets have the feed's length (a minute, a
    second) unless ``cadence_seconds`` is given; REST and ``/real-time/`` paths return a window of ``window_seconds``.
    Values are written alternately as numbers and as text. With every ``restate_every``-th tick the last bucket but one
    changes its value in all subscriptions. ``protocol`` is the generation of Socket.IO.
    """

    interval_seconds: float | None = 1.0  # between two ticks; None: only when ``tick`` is called
    step_seconds = 1.0
    ping_interval_seconds: float = 25
    ticks = 0

    def __init__(
        self,
        *,
        seed: int = 0,
        api_key: str | None = None,
        port: int = 0,
        cadence_seconds: int | None = None,
        window_seconds: float = 3600,
        restate_every: int = 0,
        protocol: SocketIoVersion = "4",
    ) -> None:
        self.api_key = api_key or secrets.token_hex(12)
        self.market = Market(seed, TICKERS, cadence_seconds)
        self.tokens = TokenIssuer(self.api_key, TOKEN_LIFETIME_SECONDS)
        self.now = time.time()
        self.window_seconds = window_seconds
        self.restate_every = restate_every
        self.protocol: SocketIoVersion = protocol
        self.ping_timeout_seconds = _PING_TIMEOUT_SECONDS[protocol]
        self._port = port
        self._sessions: dict[str, ClientSession] = {}
        self._messages = 0
        self._wake = asyncio.Event()
        self._new: list[tuple[ClientSession, SubscribeRequest]] = []  # subscribed, but nothing was sent yet

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``; the port stays the same over ``stop`` and ``start``."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen on loopback and start ticking."""
        app = web.Application()
        app.router.add_post("/jwt", self._login)
        app.router.add_get("/real-time/{name}", self._real_time)
        app.router.add_get("/historical/{name}", self._historical)
        self._socket_server = _SOCKET_SERVERS[self.protocol](
            app, self, ping_interval_seconds=self.ping_interval_seconds, ping_timeout_seconds=self.ping_timeout_seconds
        )
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.2, max_line_size=_MAX_LINE_BYTES, max_field_size=_MAX_LINE_BYTES
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = int(self._runner.addresses[0][1])
        self._ticker = asyncio.create_task(self._tick_forever())

    async def stop(self) -> None:
        """Close every transport as a server does that restarts, and stop listening."""
        self._ticker.cancel()
        await asyncio.wait([self._ticker])
        for sid in list(self._sessions):
            await self._socket_server.close(sid)
        await self._socket_server.stop()
        await self._runner.cleanup()
        self._sessions.clear()
        if not self._ticker.cancelled():
            self._ticker.result()  # raises the error that ended it

    def subscriptions(self) -> list[SubscribeRequest]:
        """Return the current subscriptions by path and params; twice if two connections have the same."""
        return sorted((request for _, request in self._subscribed()), key=lambda request: request.key)

    def restate(self, path: str, ticker: str, buckets_ago: int = 1) -> None:
        """Change the value of a past bucket from the next emission on."""
        self.market.restate(path, ticker, self.market.bucket(path, self.now) - buckets_ago)

    async def tick(self) -> None:
        """Advance the time by one step and send what is due."""
        self.ticks += 1
        self.now += self.step_seconds
        if self.restate_every and self.ticks % self.restate_every == 0:
            for request in self.subscriptions():
                for ticker in [request.params["ticker"]] if "ticker" in request.params else self.market.tickers:
                    self.restate(request.path, ticker)
        for session, request in list(self._subscribed()):
            await self._send_if_due(session, request)

    # --- HTTP ---

    async def _login(self, request: web.Request) -> web.StreamResponse:
        return respond(lambda: self._issue_token(request))

    def _issue_token(self, request: web.Request) -> dict[str, str]:
        check_key(request, self.api_key)
        return {"token": self.tokens.issue()}

    async def _real_time(self, request: web.Request) -> web.StreamResponse:
        return respond(lambda: self._current_rows(request))

    def _current_rows(self, request: web.Request) -> list[Row]:
        check_key(request, self.api_key)
        path = request.path.removesuffix(".json")
        check_request(path, "get", request.query)
        return self._window(path, request.query)

    async def _historical(self, request: web.Request) -> web.StreamResponse:
        return respond(lambda: self._past_rows(request))

    def _past_rows(self, request: web.Request) -> list[Row]:
        check_key(request, self.api_key)
        path = _real_time_path(request.match_info["name"])
        check_request(path, "get", {"ticker": "any"})
        first, last = historical_buckets(self.market, path, request.query, self.now)
        return self.market.rows(path, request.query, first, last, self._next_style())

    # --- socket ---

    def why_refused(self, token: str) -> str | None:
        """Return why a client with this token is refused; None accepts it."""
        return self.tokens.why_rejected(token)

    def on_connect(self, sid: str, token: str, request: web.Request) -> None:
        """Note a new session. ``request`` is that of its transport."""
        self._sessions[sid] = ClientSession(sid, request, token)

    def on_disconnect(self, sid: str) -> None:
        """Note the end of a session."""
        self._sessions.pop(sid, None)

    def on_request(self, event: str, sid: str, payload: Any) -> tuple[Any, ...] | None:
        """Answer ``subscribe`` or ``unsubscribe`` with the arguments of the acknowledgement; None: do not answer."""
        session = self._sessions.get(sid)
        if session is None:
            return None  # the client has gone
        try:
            request = parse_request(sid, payload)
            self._subscribe(session, request) if event == "subscribe" else self._unsubscribe(session, request)
        except BadRequest as error:
            return (error.error,)
        return (None,)

    def _subscribe(self, session: ClientSession, request: SubscribeRequest) -> None:
        self._check(request)
        session.add(request)
        self._new.append((session, request))
        self._wake.set()

    def _unsubscribe(self, session: ClientSession, request: SubscribeRequest) -> None:
        if session.subscriptions.pop(request.key, None) is None:
            raise BadRequest("Not subscribed")

    def _check(self, request: SubscribeRequest) -> None:
        check_request(request.path, request.method, request.params)

    # --- sending ---

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + (self.interval_seconds or 0)
        while True:
            self._wake.clear()
            new, self._new = self._new, []
            for session, request in new:
                if session.subscriptions.get(request.key) is request:  # else removed or replaced meanwhile
                    await self._send_if_due(session, request)
            try:
                async with asyncio.timeout_at(None if self.interval_seconds is None else due):
                    await self._wake.wait()
            except TimeoutError:
                pass
            if self.interval_seconds is not None and loop.time() >= due:
                await self.tick()
                due = max(due + self.interval_seconds, loop.time())

    async def _send_if_due(self, session: ClientSession, request: SubscribeRequest) -> None:
        bucket, last = self.market.bucket(request.path, self.now), session.last_bucket.get(request.key)
        if last != bucket:
            session.last_bucket[request.key] = bucket
            await self._send_rows(request, self._due_rows(request, last, bucket))

    def _due_rows(self, request: SubscribeRequest, last: int | None, bucket: int) -> list[Row]:
        if not is_stream(request.path):
            return self._window(request.path, request.params)
        first = bucket if last is None else last + 1
        return self.market.rows(request.path, request.params, first, bucket, self._next_style())

    def _window(self, path: str, params: Mapping[str, str]) -> list[Row]:
        first = self.market.bucket(path, self.now - self.window_seconds) + 1
        return self.market.rows(path, params, first, self.market.bucket(path, self.now), self._next_style())

    def _next_style(self) -> Style:
        self._messages += 1
        return "text" if self._messages % 2 else "numbers"

    async def _send_rows(self, request: SubscribeRequest, rows: list[Row]) -> bool:
        event = event_name(request.path)
        payload = envelope(request.path, request.params, rows, self.now) if event == "data" else rows
        return await self._socket_server.send_event(request.sid, event, json.dumps(payload, separators=(",", ":")))

    def _subscribed(self) -> Iterator[tuple[ClientSession, SubscribeRequest]]:
        return ((session, request) for session in self._sessions.values() for request in session.subscriptions.values())


def event_name(path: str) -> str:
    """Return the name of the events that carry the data of a path."""
    return "data" if is_stream(path) else "res"


def _real_time_path(name: str) -> str:
    """Return the path whose rows ``/historical/<name>`` returns."""
    name = name.removesuffix(".json").removesuffix("-by-ticker").removesuffix("-by-user")
    return name if name.endswith("-chart-data") else f"/real-time/{name}"
