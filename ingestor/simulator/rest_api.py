"""HTTP responses of the simulated provider: checks of a request, and its answer or error."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from aiohttp import web

from ingestor.provider import catalog
from ingestor.simulator.market import Market

_DAY_SECONDS = 86_400
_CHART_DAYS = 7  # the most that one historical request for chart data may cover


class BadRequest(Exception):
    """What is wrong with a request, in the provider's words, with the status of the response."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def error(self) -> dict[str, str]:
        """The error object as the provider sends it, over HTTP and in acknowledgements."""
        return {"type": "invalid_request_error", "message": str(self)}


def check_key(request: web.Request, api_key: str) -> None:
    """Check Basic authorization: the key is the user name, the password is empty. Raises BadRequest (401)."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        credentials = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        credentials = b""
    if scheme.lower() != "basic" or not hmac.compare_digest(credentials, f"{api_key}:".encode()):
        raise BadRequest("Invalid API Key provided", status=401)


def check_request(path: str, method: str, params: Mapping[str, str]) -> None:
    """Check a request or subscription for current data. Raises BadRequest."""
    if method.lower() != "get":
        raise BadRequest(f"Unsupported method: {method}")
    if path not in catalog.PATHS:
        raise BadRequest(f"No such endpoint: {path}", status=404)
    if catalog.requires_ticker(path, params):
        raise BadRequest("Missing required parameter: ticker")


def historical_buckets(market: Market, path: str, query: Mapping[str, str], now: float) -> tuple[int, int]:
    """Return the first and the last bucket of a historical request. Raises BadRequest for what the provider refuses."""
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


def respond(make_content: Callable[[], object]) -> web.Response:
    """Return what ``make_content`` returns as JSON, or its BadRequest as the provider's error object."""
    try:
        status, content = 200, make_content()
    except BadRequest as error:
        status, content = error.status, error.error
    text = json.dumps(content, separators=(",", ":"))
    return web.Response(text=text, status=status, content_type="application/json")
