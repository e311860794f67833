"""The HTTP half: logins and REST answers, with faults on demand. Knows nothing of sockets."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from ingestor.provider import catalog
from ingestor.simulator.market import Market

_DAY_SECONDS = 86_400
_CHART_DAYS = 7  # the most that one historical request for chart data may ask for


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How an HTTP answer goes wrong. ``body`` None leaves the true answer as it is."""

    status: int = 200
    delay_seconds: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)  # Retry-After, Location
    body: str | None = None
    trickle_seconds: float = 0  # the pause after each byte


class BadRequest(Exception):
    """What the asker did wrong, in the provider's words, with the status it answers."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def error(self) -> dict[str, str]:
        """The error object as the provider sends it, over HTTP and in acknowledgements."""
        return {"type": "invalid_request_error", "message": str(self)}


def check_key(request: web.Request, api_key: str) -> None:
    """The key is the user name of Basic authorization, the password is empty. Raises BadRequest (401) otherwise."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        given = b""
    if scheme.lower() != "basic" or not hmac.compare_digest(given, f"{api_key}:".encode()):
        raise BadRequest("Invalid API Key provided", status=401)


def check_request(path: str, method: str, params: Mapping[str, str]) -> None:
    """Whether the provider would answer this path. Raises BadRequest otherwise."""
    if method.lower() != "get":
        raise BadRequest(f"Unsupported method: {method}")
    if path not in catalog.PATHS:
        raise BadRequest(f"No such endpoint: {path}", status=404)
    by_user = catalog.FEEDS[catalog.base_name(path)].by_user and "user_id" in params
    if path.startswith("/") and not params.get("ticker") and not by_user:
        raise BadRequest("Missing required parameter: ticker")


def historical_buckets(market: Market, path: str, query: Mapping[str, str], now: float) -> tuple[int, int]:
    """First and last bucket that a historical request asks for. Raises BadRequest for what the provider refuses."""
    if not query.get("ticker") and not query.get("user_id"):
        raise BadRequest("Missing required parameter: ticker")
    chart = path.endswith("-chart-data")
    start, end = (_bound(query, chart, side) for side in ("start", "end"))
    if chart and end - start > _CHART_DAYS * _DAY_SECONDS:
        raise BadRequest(f"At most {_CHART_DAYS} days may be requested")
    if end >= now // _DAY_SECONDS * _DAY_SECONDS:
        raise BadRequest("The end must be yesterday at the latest")
    return market.bucket(path, start), market.bucket(path, end)


def _bound(query: Mapping[str, str], chart: bool, side: str) -> float:
    name = f"{side}_date" if chart else f"{side}_ts"
    try:
        text = query[name]
        moment = datetime.strptime(text, "%m-%d-%Y") if chart else datetime.fromisoformat(text)  # noqa: DTZ007
    except KeyError:
        raise BadRequest(f"Missing required parameter: {name}") from None
    except ValueError:
        raise BadRequest(f"Invalid parameter: {name}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole_day = _DAY_SECONDS - 1 if chart and side == "end" else 0
    return moment.timestamp() + whole_day


async def respond(request: web.Request, make: Callable[[], object], fault: Fault | None) -> web.StreamResponse:
    """What ``make`` returns as JSON, its BadRequest as the provider's error, or what the fault makes of either."""
    status = 200
    try:
        content = make()
    except BadRequest as refusal:
        status, content = refusal.status, refusal.error
    body = json.dumps(content, separators=(",", ":"))
    if fault is None:
        return web.Response(text=body, status=status, content_type="application/json")
    return await _spoilt(request, body, status, fault)


async def _spoilt(request: web.Request, body: str, status: int, fault: Fault) -> web.StreamResponse:
    await asyncio.sleep(fault.delay_seconds)
    text = body if fault.body is None else fault.body
    kind = "application/json" if text[:1] in ("{", "[") else "text/html"
    response = web.StreamResponse(
        status=fault.status if fault.status != 200 else status,
        headers={"Content-Type": kind, "Content-Length": str(len(text.encode())), **fault.headers},
    )
    await response.prepare(request)
    step = 1 if fault.trickle_seconds else len(text) or 1
    for start in range(0, len(text), step):
        await response.write(text[start : start + step].encode())
        await asyncio.sleep(fault.trickle_seconds)
    await response.write_eof()
    return response
