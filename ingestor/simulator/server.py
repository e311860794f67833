"""The provider on loopback, with the knobs that tests turn."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import parse_qs

from aiohttp import web
from socketio.exceptions import ConnectionRefusedError as HandshakeRefused

from ingestor.simulator.market import Market, Row, Style, envelope, is_stream
from ingestor.simulator.rest_api import BadRequest, Fault, check_key, check_request, historical_buckets, respond
from ingestor.simulator.sessions import ClientSession, SubscribeRequest, parse_request
from ingestor.simulator.socket_server import SocketServer, reset_connection
from ingestor.simulator.tokens import TimeClaims, TokenIssuer

TICKERS = ("AAPL", "TSLA", "ON", "6E_F", "CMGO", "EURAUD", "GOOG", "MSFT")


@dataclass(frozen=True, slots=True)
class Emission:
    """One data event that was put on the wire. Whether it arrived is the client's to say."""

    sid: str
    event: str
    path: str
    params: Mapping[str, str]
    rows: list[Row]


class Simulator:
    """A provider of our own: ``async with Simulator(seed=7) as provider: provider.url, provider.api_key``.

    Its time begins at ``started_at`` (seconds since the epoch; default: now) and moves ``step_seconds`` with each tick;
    a tick comes every ``interval_seconds``, or with None only when ``tick`` is called. A subscription is answered at
    once, and again with every tick that begins a new bucket of its path. Buckets are the feeds' own (a minute, a
    second) unless ``cadence_seconds`` says otherwise. ``style`` "alternate" writes values as numbers and as text by
    turns. With every ``restate_every``-th tick the last bucket but one gets other values in all that is subscribed.
    ``record_limit``: how many of the newest emissions ``emitted`` keeps, ``logins_at`` of the logins, and ``questions``
    of the REST requests.
    """

    refusal: str | None = None  # with a message, every handshake is refused
    login_fault: Fault | None = None
    rest_fault: Fault | None = None
    logins = 0  # tokens given
    login_attempts = 0
    handshakes = 0  # sessions accepted
    ticks = 0

    def __init__(
        self,
        *,
        seed: int = 0,
        api_key: str | None = None,
        port: int = 0,
        interval_seconds: float | None = 1.0,
        step_seconds: float = 1.0,
        started_at: float | None = None,
        window_seconds: float = 3600,
        cadence_seconds: int | None = None,
        style: Style | Literal["alternate"] = "alternate",
        restate_every: int = 0,
        tickers: tuple[str, ...] = TICKERS,
        token_bytes: int | None = None,
        token_lifetime_seconds: float = 5 * 3600,
        token_stamps: TimeClaims = "iat+exp",  # noqa: S107 - no password
        kick_expired: bool = False,
        ping_interval_seconds: int = 25,
        ping_timeout_seconds: int = 20,
        record_limit: int = 0,
    ) -> None:
        self.api_key = api_key or secrets.token_hex(12)
        self.market = Market(seed, tickers, cadence_seconds)
        self.tokens = TokenIssuer(
            self.api_key, lifetime_seconds=token_lifetime_seconds, stamps=token_stamps, token_bytes=token_bytes
        )
        self.now = time.time() if started_at is None else started_at
        self.interval_seconds = interval_seconds
        self.step_seconds = step_seconds
        self.window_seconds = window_seconds
        self.style = style
        self.restate_every = restate_every
        self.kick_expired = kick_expired
        self.refused: dict[str, str] = {}  # path or ticker → message of the refusal
        self.unanswered: set[str] = set()  # paths or tickers whose subscribe is never acknowledged
        self.muted: set[str] = set()  # tickers that nothing is sent for
        self.quiet: set[str] = set()  # tickers that only empty lists are sent for
        self.emitted: deque[Emission] = deque(maxlen=record_limit)
        self.request_counts: Counter[tuple[str, str]] = Counter()  # (subscribe or unsubscribe, path or ticker)
        self.login_times: deque[float] = deque(maxlen=record_limit)  # epoch seconds of the newest attempts
        self.rest_requests: deque[str] = deque(maxlen=record_limit)  # path and query
        self._pings = {"ping_interval_seconds": ping_interval_seconds, "ping_timeout_seconds": ping_timeout_seconds}
        self._port = port
        self._sessions: dict[str, ClientSession] = {}
        self._messages = 0
        self._burst_buckets = 0
        self._wake = asyncio.Event()
        self._new: list[tuple[ClientSession, SubscribeRequest]] = []  # asked for, and not yet answered

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it listens, ``http://127.0.0.1:port``; the port stays the same over ``stop`` and ``start``."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen on loopback and begin to tick."""
        app = web.Application()
        app.router.add_post("/jwt", self._login)
        app.router.add_get("/real-time/{name}", self._real_time)
        app.router.add_get("/historical/{name}", self._historical)
        self._wire = SocketServer(app, **self._pings)
        self._wire.on("connect", self._on_connect)
        self._wire.on("disconnect", self._on_disconnect)
        self._wire.on("subscribe", self._on_subscribe)
        self._wire.on("unsubscribe", self._on_unsubscribe)
        self._port = await self._wire.listen(self._port)
        self._ticking = asyncio.create_task(self._tick_forever())

    async def stop(self) -> None:
        """Close every transport as a server does that is restarted, and stop listening."""
        self._ticking.cancel()
        await asyncio.wait([self._ticking])
        await self.close_transport()
        await self._wire.stop()
        self._sessions.clear()
        if not self._ticking.cancelled():
            self._ticking.result()  # raises what had ended it

    @property
    def connections(self) -> list[str]:
        """The sessions that are connected now."""
        return list(self._sessions)

    def subscriptions(self) -> list[SubscribeRequest]:
        """What is subscribed now, ordered by path and params; twice if two connections asked for it."""
        return sorted((asked for _, asked in self._subscribed()), key=lambda asked: asked.key)

    def refuse(self, name: str, message: str) -> None:
        """Refuse subscriptions of this path or ticker, until ``allow``."""
        self.refused[name] = message

    def allow(self, name: str) -> None:
        """Take back ``refuse``."""
        self.refused.pop(name, None)

    def mute(self, ticker: str) -> None:
        """Send nothing for this ticker, until ``unmute``."""
        self.muted.add(ticker)

    def unmute(self, ticker: str) -> None:
        """Take back ``mute``."""
        self.muted.discard(ticker)

    def restate(self, path: str, ticker: str, buckets_ago: int = 1) -> None:
        """From the next emission on, the row that lies so many buckets back has other values."""
        self.market.restate(path, ticker, self.market.bucket(path, self.now) - buckets_ago)

    async def tick(self) -> None:
        """Move time one step, and send what is due."""
        self.ticks += 1
        self.now += self.step_seconds
        if self.restate_every and self.ticks % self.restate_every == 0:
            self._restate_all()
        await self._send_due()

    async def kick(self) -> None:
        """Disconnect every session with a Socket.IO packet (``41``); the transport stays for the client to close."""
        for sid in self.connections:
            await self._wire.kick(sid)

    async def close_transport(self, how: Literal["close", "reset"] = "close") -> None:
        """End every transport: with an Engine.IO close packet (``1``), or with a TCP reset."""
        for session in list(self._sessions.values()):
            if how == "reset":
                reset_connection(session.request)
            else:
                await self._wire.close(session.sid)

    async def burst(self, frames: int, rows: int = 1) -> None:
        """Send as many data events as quickly as they go, dealt to the subscriptions in turn, each with new rows.

        Their buckets lie before the window, and no two events of one simulator share a row.
        """
        targets = list(self._subscribed())
        for number in range(frames if targets else 0):
            session, asked = targets[number % len(targets)]
            last = self.market.bucket(asked.path, self.now - 10 * self.window_seconds) - self._burst_buckets
            self._burst_buckets += rows
            made = self.market.rows(asked.path, asked.params, last - rows + 1, last, self._next_style())
            await self._send_rows(asked, made)
            await self._wire.room(session.sid)

    async def emit_raw(self, path: str, payload: str) -> None:
        """Send this text, unchecked, as the payload of a data event to all who subscribed to the path."""
        for sid in {asked.sid for asked in self.subscriptions() if asked.path == path}:
            await self._wire.send(sid, f'2["{_event(path)}",{payload}]')

    async def send_event(self, event: str, payload: object) -> None:
        """Send any event (``err``, ``error``) to every session."""
        await self.send_text("2" + json.dumps([event, payload]))

    async def send_text(self, text: str) -> None:
        """Send a Socket.IO packet to every session as it stands, however malformed; ``2["res",[]]`` is a data event."""
        for sid in self.connections:
            await self._wire.send(sid, text)

    async def _login(self, request: web.Request) -> web.StreamResponse:
        self.login_attempts += 1
        self.login_times.append(time.time())
        return await respond(request, lambda: self._token(request), self.login_fault)

    def _token(self, request: web.Request) -> dict[str, str]:
        check_key(request, self.api_key)
        self.logins += 1
        return {"token": self.tokens.issue()}

    async def _real_time(self, request: web.Request) -> web.StreamResponse:
        self.rest_requests.append(request.path_qs)
        return await respond(request, lambda: self._present(request), self.rest_fault)

    def _present(self, request: web.Request) -> list[Row]:
        check_key(request, self.api_key)
        path = request.path.removesuffix(".json")
        check_request(path, "get", request.query)
        return self._window(path, request.query)

    async def _historical(self, request: web.Request) -> web.StreamResponse:
        self.rest_requests.append(request.path_qs)
        return await respond(request, lambda: self._past(request), self.rest_fault)

    def _past(self, request: web.Request) -> list[Row]:
        check_key(request, self.api_key)
        path = _real_time_path(request.match_info["name"])
        check_request(path, "get", {"ticker": "any"})
        first, last = historical_buckets(self.market, path, request.query, self.now)
        return self.market.rows(path, request.query, first, last, self._next_style())

    def _on_connect(self, sid: str, environ: dict[str, Any], _auth: object = None) -> None:
        token = parse_qs(environ["QUERY_STRING"]).get("token", [""])[0]
        complaint = self.refusal or self.tokens.complaint(token)
        if complaint:
            raise HandshakeRefused(complaint)
        self.handshakes += 1
        self._sessions[sid] = ClientSession(sid, environ["aiohttp.request"], token)
        self._wake.set()

    def _on_disconnect(self, sid: str, _reason: str) -> None:
        self._sessions.pop(sid, None)

    def _on_subscribe(self, sid: str, wanted: Any) -> Any:
        try:
            asked = parse_request(sid, wanted)
            self.request_counts.update(("subscribe", name) for name in asked.names)
            if asked.names & self.unanswered:
                return self._wire.unanswered
            self._check(asked)
        except BadRequest as refusal:
            return (refusal.error,)
        session = self._sessions.get(sid)
        if session is None:
            return self._wire.unanswered  # it has gone while this was on its way
        session.add(asked)
        self._new.append((session, asked))
        self._wake.set()
        return (None,)

    def _on_unsubscribe(self, sid: str, wanted: Any) -> Any:
        try:
            asked = parse_request(sid, wanted)
            self.request_counts.update(("unsubscribe", name) for name in asked.names)
            if session := self._sessions.get(sid):
                session.remove(asked)
        except BadRequest as refusal:
            return (refusal.error,)
        return (None,)

    def _check(self, asked: SubscribeRequest) -> None:
        for name in asked.names & self.refused.keys():
            raise BadRequest(self.refused[name])
        check_request(asked.path, asked.method, asked.params)

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + (self.interval_seconds or 0)
        while True:
            self._wake.clear()
            await self._kick_expired()
            await self._send_new()
            await self._sleep(due)
            if self.interval_seconds is not None and loop.time() >= due:
                await self.tick()
                due = max(due + self.interval_seconds, loop.time())

    async def _sleep(self, due: float) -> None:
        """Until the next tick, the next expiry, or somebody has subscribed."""
        waits = [] if self.interval_seconds is None else [due - asyncio.get_running_loop().time()]
        if self.kick_expired:
            waits += [self._remaining(session) for session in self._sessions.values()]
        try:
            async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                await self._wake.wait()
        except TimeoutError:
            pass  # something is due

    async def _kick_expired(self) -> None:
        for session in list(self._sessions.values()) if self.kick_expired else []:
            if self._remaining(session) <= 0:
                await self._wire.kick(session.sid)

    def _remaining(self, session: ClientSession) -> float:
        return self.tokens.remaining_seconds(session.token) or 0.0

    async def _send_new(self) -> None:
        new, self._new = self._new, []
        for session, asked in new:
            if session.asked.get(asked.key) is asked:  # else it has been asked for again, or is no longer
                await self._send_if_due(session, asked)

    async def _send_due(self) -> None:
        for session, asked in list(self._subscribed()):
            await self._send_if_due(session, asked)

    async def _send_if_due(self, session: ClientSession, asked: SubscribeRequest) -> None:
        bucket, last = self.market.bucket(asked.path, self.now), session.last_bucket.get(asked.key)
        if last != bucket and asked.params.get("ticker") not in self.muted:
            session.last_bucket[asked.key] = bucket
            await self._send_rows(asked, self._due(asked, last, bucket))

    def _due(self, asked: SubscribeRequest, last: int | None, bucket: int) -> list[Row]:
        if is_stream(asked.path):
            first = bucket if last is None else last + 1
            rows = self.market.rows(asked.path, asked.params, first, bucket, self._next_style())
        else:
            rows = self._window(asked.path, asked.params)
        return [row for row in rows if row["ticker"] not in self.muted | self.quiet]

    def _window(self, path: str, params: Mapping[str, str]) -> list[Row]:
        first = self.market.bucket(path, self.now - self.window_seconds) + 1
        return self.market.rows(path, params, first, self.market.bucket(path, self.now), self._next_style())

    def _next_style(self) -> Style:
        if self.style != "alternate":
            return self.style
        self._messages += 1
        return "text" if self._messages % 2 else "numbers"

    def _restate_all(self) -> None:
        for asked in self.subscriptions():
            for ticker in [asked.params["ticker"]] if "ticker" in asked.params else self.market.tickers:
                self.restate(asked.path, ticker)

    async def _send_rows(self, asked: SubscribeRequest, rows: list[Row]) -> None:
        event = _event(asked.path)
        payload = envelope(asked.path, asked.params, rows, self.now) if event == "data" else rows
        if await self._wire.send(asked.sid, "2" + json.dumps([event, payload], separators=(",", ":"))):
            self.emitted.append(Emission(asked.sid, event, asked.path, asked.params, rows))

    def _subscribed(self) -> Iterator[tuple[ClientSession, SubscribeRequest]]:
        return ((session, asked) for session in self._sessions.values() for asked in session.asked.values())


def _event(path: str) -> str:
    return "data" if is_stream(path) else "res"


def _real_time_path(name: str) -> str:
    """The path whose rows ``/historical/<name>`` answers with."""
    name = name.removesuffix(".json").removesuffix("-by-ticker").removesuffix("-by-user")
    return name if name.endswith("-chart-data") else f"/real-time/{name}"
