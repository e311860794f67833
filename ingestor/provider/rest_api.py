"""GET requests to the provider: current data and history, one at a time, with a pause between them.

The rules come from the provider's documentation of June to September 2014. It shows responses of 0.5 to 1 MB that took
20 to 75 s; history ends yesterday at the latest; chart data is requested by dates, at most seven days at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlencode

from pydantic import SecretStr

from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import boottime, wall_us
from ingestor.errors import ResponseTooLarge, RestRefused, RestUnavailable, TokenRefused
from ingestor.provider.auth.login import retry_after_seconds
from ingestor.provider.catalog import FEEDS, Feed, base_name
from ingestor.provider.http_client import BodyTooLarge, HttpRequest, HttpResponse, RequestFailed
from ingestor.provider.socket.connection import error_text

MAX_RESPONSE_BYTES = 8 << 20  # on its way into the database it takes about twenty times as much memory
MAX_SPLITTABLE_BYTES = 2 << 20  # where the range can be split: twice the largest documented response
REQUEST_SECONDS = (
    180.0  # the view `history` relies on it: nothing that was requested earlier than this is still to come
)
SPACING_SECONDS = 2.0  # from the end of a response to the next request
UNAVAILABLE_BACKOFF = Backoff(first_seconds=15.0, cap_seconds=3600.0)
REFUSED_STATUSES = frozenset({400, 403, 404, 405, 406, 410, 414})

DAY = timedelta(days=1)
MAX_RANGE = timedelta(days=7)
MAX_RANGE_BUCKETS = 7 * 24 * 60  # a week of minutes is the documented 0.5 to 1 MB; of seconds, not quite three hours
_BEFORE = timedelta(microseconds=1)  # the provider includes the end of a range


@dataclass(frozen=True, slots=True, kw_only=True)
class RestRequest:
    """What to GET. The params include the times."""

    path: str
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestResponse:
    """The body of a response with status 200."""

    text: str
    sent_us: int  # our wall clock when the request was sent: the response may reflect the state at that moment


def current_request(path: str, params: Mapping[str, str]) -> RestRequest | None:
    """Return the request for the rolling window of ``path``; None where the provider has no REST endpoint for it."""
    feed = FEEDS.get(base_name(path))
    if (feed is None and not path.startswith("/real-time/")) or (feed and feed.stream_only) or not _has_key(params):
        return None
    return RestRequest(path=f"/real-time/{base_name(path)}", params=dict(params))


def history_request(path: str, params: Mapping[str, str], start: datetime, end: datetime) -> RestRequest | None:
    """Return the request for what ``path`` streamed from ``start`` (UTC) to before ``end``; None without history.

    ``end`` is midnight of today at the latest; the range is at most ``max_range`` long.
    """
    feed = FEEDS.get(base_name(path))
    if feed is None or feed.history_path is None or not _has_key(params):
        return None
    last = end - _BEFORE
    bounds = (
        {"start_date": f"{start:%m-%d-%Y}", "end_date": f"{last:%m-%d-%Y}"}
        if feed.whole_days
        else {"start_ts": _iso(start), "end_ts": _iso(last)}
    )
    history_path = feed.history_path
    if feed.by_user and not params.get("ticker"):
        history_path = history_path.removesuffix("-by-ticker") + "-by-user"
    return RestRequest(path=history_path, params={**params, **bounds})


def has_history(path: str) -> bool:
    """Return whether past days of ``path`` can be requested."""
    feed = FEEDS.get(base_name(path))
    return feed is not None and feed.history_path is not None


def uses_dates(path: str) -> bool:
    """Return whether the history of ``path`` is requested in whole days."""
    return FEEDS[base_name(path)].whole_days


def max_range(path: str) -> timedelta:
    """Return how much history of ``path`` one request may cover."""
    longest = min(MAX_RANGE, MAX_RANGE_BUCKETS * bucket_length(path))
    return max(longest, DAY) if uses_dates(path) else longest


def bucket_length(path: str) -> timedelta:
    """Return the length of the provider's buckets; a minute for a path that is not documented."""
    feed: Feed | None = FEEDS.get(base_name(path))
    return timedelta(seconds=feed.cadence_seconds if feed else 60)


class RestClient:
    """Sends one request at a time, from one thread. ``cancel`` may be called from any thread."""

    def __init__(
        self, url: str, api_key: Callable[[], SecretStr], *, ca_file: Path | None = None, proxy: SecretStr | None = None
    ) -> None:
        """``url``: the API's root. ``api_key`` is called for each request."""
        self._url = url
        self._api_key = api_key
        self._ca_file = ca_file
        self._proxy = proxy
        self._failures = 0
        self._not_before = 0.0  # boottime of the next request at the earliest
        self._lock = threading.Lock()
        self._current: HttpRequest | None = None
        self._cancelled = False

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next request."""
        return max(0.0, self._not_before - boottime())

    def get(self, request: RestRequest, *, can_split: bool = False) -> RestResponse:
        """Send a request and wait up to three minutes for the response. Call it once ``pause_seconds`` is 0.

        ``can_split``: the caller can request the same in smaller ranges, so at most ``MAX_SPLITTABLE_BYTES`` are read.

        Raises RestUnavailable: no usable response now. RestRefused: there will be none. ResponseTooLarge: request less.
        TokenRefused: the API key is not accepted (401).
        """
        sent_us = wall_us()
        try:
            response = self._send(request, MAX_SPLITTABLE_BYTES if can_split else MAX_RESPONSE_BYTES)
            if response.status != 200:
                _raise_for_status(request, response)
            if wall_us() - sent_us > REQUEST_SECONDS * 1_000_000:
                raise RestUnavailable(f"{request.path}: the clock was set, or the machine slept, during the request")
            result = RestResponse(text=_decode_body(request, response), sent_us=sent_us)
        except (RestUnavailable, TokenRefused):
            self._failures += 1
            self._pause(UNAVAILABLE_BACKOFF.equal_jitter(self._failures, chance()))
            raise
        self._failures = 0
        return result

    def cancel(self) -> None:
        """Let the current request and every later one fail with RestUnavailable at once."""
        with self._lock:
            self._cancelled = True
            if self._current:
                self._current.cancel()

    def _send(self, request: RestRequest, max_bytes: int) -> HttpResponse:
        http_request = HttpRequest(
            method="GET",
            url=f"{self._url}{request.path}?{urlencode(request.params)}",
            api_key=self._api_key(),
            timeout_seconds=REQUEST_SECONDS,
            max_bytes=max_bytes,
            ca_file=self._ca_file,
            proxy=self._proxy,
        )
        with self._lock:
            if self._cancelled:
                raise RestUnavailable("the daemon is stopping")
            self._current = http_request
        try:
            response = http_request.send()
        except BodyTooLarge as error:
            raise ResponseTooLarge(f"{request.path}: {error}", 200) from None
        except RequestFailed as error:
            raise RestUnavailable(f"{request.path}: {error}") from None
        finally:
            self._pause(SPACING_SECONDS)
        self._pause(retry_after_seconds(response.headers) or 0.0)
        return response

    def _pause(self, seconds: float) -> None:
        self._not_before = max(self._not_before, boottime() + seconds)


def _raise_for_status(request: RestRequest, response: HttpResponse) -> NoReturn:
    message = f"{request.path}: HTTP {response.status}{_provider_error(response.body)}"
    if response.status == 401:
        raise TokenRefused(f"{message}: the API key is not accepted; check provider.api_key_file")
    if response.status in REFUSED_STATUSES:
        raise RestRefused(message, response.status)
    raise RestUnavailable(message)


def _provider_error(body: bytes) -> str:
    """Return the text of the provider's documented error object; "" if the body is something else."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return f": {error_text(error)}" if isinstance(error, dict) else ""


def _decode_body(request: RestRequest, response: HttpResponse) -> str:
    try:
        return response.body.decode("utf-8")
    except UnicodeDecodeError:
        raise RestUnavailable(f"{request.path}: the response is not UTF-8") from None


def _has_key(params: Mapping[str, str]) -> bool:
    return bool(params.get("ticker") or params.get("user_id"))


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
