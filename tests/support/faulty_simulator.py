"""The simulator with faults on demand, and a record of what was requested and sent."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from ingestor.simulator import Simulator
from ingestor.simulator.market import Row, Style
from ingestor.simulator.rest_api import BadRequest
from ingestor.simulator.server import TICKERS, event_name
from ingestor.simulator.sessions import ClientSession, SubscribeRequest, parse_request
from ingestor.simulator.tokens import TokenIssuer

from .node_server import Emission

TimeClaims = Literal["iat+exp", "exp", "none"]  # in a token; the documentation shows some of them without
MAX_QUEUED_MESSAGES = 1_000  # of a session, in a burst


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How an HTTP response goes wrong. ``body`` None keeps the correct body."""

    status: int = 200
    delay_seconds: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)  # Retry-After, Location
    body: str | None = None
    trickle_seconds: float = 0  # the pause after each byte


class SizedTokenIssuer(TokenIssuer):
    """Issues tokens with the chosen time claims, of about ``token_bytes`` bytes."""

    def __init__(self, api_key: str, lifetime_seconds: float, time_claims: TimeClaims, token_bytes: int | None) -> None:
        super().__init__(api_key, lifetime_seconds)
        self._time_claims = time_claims
        self._token_bytes = token_bytes

    def revoke(self) -> None:
        """Reject every token issued so far."""
        self._expires_at.clear()

    def _claims(self) -> dict[str, Any]:
        claims = super()._claims()
        for name in {"iat", "exp"} - set(self._time_claims.split("+")):
            del claims[name]
        return claims if self._token_bytes is None else _fit(claims, self._token_bytes)


class FaultySimulator(Simulator):
    """A simulator that misbehaves on demand.

    ``started_at`` is the first ``now``. ``style`` "alternate" writes values alternately as numbers and as text.
    ``record_limit``: how many of the newest emissions, logins and REST requests are recorded.
    """

    refusal: str | None = None  # with a message, every handshake is refused
    login_fault: Fault | None = None
    rest_fault: Fault | None = None
    rest_without: tuple[str, str] | None = None  # REST responses lack the rows whose ts is in this range
    logins = 0  # tokens issued
    login_attempts = 0
    handshakes = 0  # sessions accepted

    def __init__(
        self,
        *,
        interval_seconds: float | None = 1.0,
        step_seconds: float = 1.0,
        started_at: float | None = None,
        style: Style | Literal["alternate"] = "alternate",
        tickers: tuple[str, ...] = TICKERS,
        token_bytes: int | None = None,
        token_lifetime_seconds: float = 5 * 3600,
        time_claims: TimeClaims = "iat+exp",
        kick_expired: bool = False,
        ping_interval_seconds: float = 25,
        ping_timeout_seconds: float | None = None,
        record_limit: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.tokens: SizedTokenIssuer = SizedTokenIssuer(self.api_key, token_lifetime_seconds, time_claims, token_bytes)
        self.market.tickers = tickers
        self.interval_seconds = interval_seconds
        self.step_seconds = step_seconds
        if started_at is not None:
            self.now = started_at
        self.style = style
        self.kick_expired = kick_expired
        self.ping_interval_seconds = ping_interval_seconds
        self.ping_timeout_seconds = ping_timeout_seconds or self.ping_timeout_seconds
        self.refused: dict[str, str] = {}  # path or ticker → message of the refusal
        self.unanswered: set[str] = set()  # paths or tickers whose subscribe is never acknowledged
        self.muted: set[str] = set()  # tickers for which nothing is sent
        self.quiet: set[str] = set()  # tickers for which only empty lists are sent
        self.emitted: deque[Emission] = deque(maxlen=record_limit)
        self.request_counts: Counter[tuple[str, str]] = Counter()  # (subscribe or unsubscribe, path or ticker)
        self.login_times: deque[float] = deque(maxlen=record_limit)  # epoch seconds of the newest attempts
        self.rest_requests: deque[str] = deque(maxlen=record_limit)  # path and query
        self._burst_buckets = 0

    async def start(self) -> None:
        await super().start()
        self._kicker = asyncio.create_task(self._kick_expired())

    async def stop(self) -> None:
        self._kicker.cancel()
        await asyncio.wait([self._kicker])
        await super().stop()

    @property
    def connections(self) -> list[str]:
        """The ids of the connected sessions."""
        return list(self._sessions)

    def refuse(self, name: str, message: str) -> None:
        """Refuse subscriptions of this path or ticker, until ``allow``."""
        self.refused[name] = message

    def allow(self, name: str) -> None:
        """Undo ``refuse``."""
        self.refused.pop(name, None)

    def mute(self, ticker: str) -> None:
        """Send nothing for this ticker, until ``unmute``."""
        self.muted.add(ticker)

    def unmute(self, ticker: str) -> None:
        """Undo ``mute``."""
        self.muted.discard(ticker)

    async def kick(self) -> None:
        """Disconnect every session with a Socket.IO packet; with 4.x, the client has to close the transport."""
        for sid in self.connections:
            await self._socket_server.kick(sid)

    async def close_transport(self, how: Literal["close", "reset"] = "close") -> None:
        """End every transport: with an Engine.IO close packet (``1``), or with a TCP reset."""
        for session in list(self._sessions.values()):
            if how == "reset":
                _reset_connection(session.request)
            else:
                await self._socket_server.close(session.sid)

    async def burst(self, frames: int, rows: int = 1) -> None:
        """Send data events as fast as possible, to the subscriptions in turn, each with new rows.

        Their buckets are older than the window, and no two events of one simulator contain the same row.
        """
        targets = list(self._subscribed())
        for number in range(frames if targets else 0):
            session, request = targets[number % len(targets)]
            last = self.market.bucket(request.path, self.now - 10 * self.window_seconds) - self._burst_buckets
            self._burst_buckets += rows
            new = self.market.rows(request.path, request.params, last - rows + 1, last, self._next_style())
            await self._send_rows(request, new)
            await self._wait_for_space(session.sid)

    async def emit_raw(self, path: str, payload: str) -> None:
        """Send this text, unchecked, as the payload of a data event to all that subscribed to the path."""
        for sid in {request.sid for request in self.subscriptions() if request.path == path}:
            await self._socket_server.send_event(sid, event_name(path), payload)

    async def send_event(self, event: str, payload: object) -> None:
        """Send any event (``err``, ``error``) to every session."""
        for sid in self.connections:
            await self._socket_server.send_event(sid, event, json.dumps(payload))

    async def send_text(self, text: str) -> None:
        """Send any text as a Socket.IO packet to every session; ``2["res",[]]`` is a data event."""
        for sid in self.connections:
            await self._socket_server.send(sid, text)

    async def _login(self, request: web.Request) -> web.StreamResponse:
        self.login_attempts += 1
        self.login_times.append(time.time())
        return await _inject(request, await super()._login(request), self.login_fault)

    def _issue_token(self, request: web.Request) -> dict[str, str]:
        token = super()._issue_token(request)
        self.logins += 1
        return token

    async def _real_time(self, request: web.Request) -> web.StreamResponse:
        self.rest_requests.append(request.path_qs)
        return await _inject(request, self._thin_out(await super()._real_time(request)), self.rest_fault)

    async def _historical(self, request: web.Request) -> web.StreamResponse:
        self.rest_requests.append(request.path_qs)
        return await _inject(request, self._thin_out(await super()._historical(request)), self.rest_fault)

    def _thin_out(self, response: web.StreamResponse) -> web.StreamResponse:
        if self.rest_without and isinstance(response, web.Response) and response.status == 200 and response.text:
            first, last = self.rest_without
            response.text = json.dumps([row for row in json.loads(response.text) if not first <= row["ts"] < last])
        return response

    def why_refused(self, token: str) -> str | None:
        return self.refusal or super().why_refused(token)

    def on_connect(self, sid: str, token: str, request: web.Request) -> None:
        super().on_connect(sid, token, request)
        self.handshakes += 1

    def on_request(self, event: str, sid: str, payload: Any) -> tuple[Any, ...] | None:
        names = self._count(event, sid, payload)
        if event == "subscribe" and names & self.unanswered:
            return None
        return super().on_request(event, sid, payload)

    def _count(self, event: str, sid: str, payload: Any) -> set[str]:
        try:
            names = _names(parse_request(sid, payload))
        except BadRequest:
            return set()
        self.request_counts.update((event, name) for name in names)
        return names

    def _check(self, request: SubscribeRequest) -> None:
        for name in _names(request) & self.refused.keys():
            raise BadRequest(self.refused[name])
        super()._check(request)

    async def _send_if_due(self, session: ClientSession, request: SubscribeRequest) -> None:
        if request.params.get("ticker") not in self.muted:
            await super()._send_if_due(session, request)

    def _due_rows(self, request: SubscribeRequest, last: int | None, bucket: int) -> list[Row]:
        rows = super()._due_rows(request, last, bucket)
        return [row for row in rows if row["ticker"] not in self.muted | self.quiet]

    def _next_style(self) -> Style:
        return super()._next_style() if self.style == "alternate" else self.style

    async def _send_rows(self, request: SubscribeRequest, rows: list[Row]) -> bool:
        sent = await super()._send_rows(request, rows)
        if sent:
            event = event_name(request.path)
            self.emitted.append(Emission(request.sid, event, request.path, request.params, rows))
        return sent

    async def _kick_expired(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            for session in list(self._sessions.values()) if self.kick_expired else []:
                if self.tokens.remaining_seconds(session.token) <= 0:
                    await self._socket_server.kick(session.sid)

    async def _wait_for_space(self, sid: str) -> None:
        await asyncio.sleep(0)
        # The library's queue has no event to wait for.
        while self._socket_server.queued(sid) > MAX_QUEUED_MESSAGES:
            await asyncio.sleep(0.001)


def _names(request: SubscribeRequest) -> set[str]:
    """What a test may refer to a subscription by: its path, its ticker."""
    return {request.path, request.params.get("ticker", request.path)}


async def _inject(request: web.Request, response: web.StreamResponse, fault: Fault | None) -> web.StreamResponse:
    if fault is None:
        return response
    await asyncio.sleep(fault.delay_seconds)
    text = fault.body
    if text is None:
        assert isinstance(response, web.Response)
        text = response.text or ""
    kind = "application/json" if text[:1] in ("{", "[") else "text/html"
    spoiled = web.StreamResponse(
        status=fault.status if fault.status != 200 else response.status,
        headers={"Content-Type": kind, "Content-Length": str(len(text.encode())), **fault.headers},
    )
    await spoiled.prepare(request)
    step = 1 if fault.trickle_seconds else len(text) or 1
    for start in range(0, len(text), step):
        await spoiled.write(text[start : start + step].encode())
        await asyncio.sleep(fault.trickle_seconds)
    await spoiled.write_eof()
    return spoiled


def _reset_connection(request: web.Request) -> None:
    transport = request.transport
    if transport is None:
        return  # closed already
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _fit(claims: dict[str, Any], token_bytes: int) -> dict[str, Any]:
    """Remove claims, or add tickers, until the token has about this many bytes (up to 3 fewer)."""
    size = (token_bytes - 81) * 3 // 4  # without header, signature and dots, before base64
    kept = dict(claims)
    for name in reversed(claims):
        if _json_size(kept) > size and name not in ("api", "id", "iat", "exp"):
            del kept[name]
    padding = size - _json_size(kept) - len(',"tickers":""')
    return kept | {"tickers": ("AAPL,TSLA,6E_F," * (padding // 15 + 1))[:padding]} if padding > 0 else kept


def _json_size(value: dict[str, Any]) -> int:
    return len(json.dumps(value, separators=(",", ":")))
