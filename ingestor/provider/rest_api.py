"""GET answers of the provider: what is current, and what past days were. One at a time, spaced. Knows nothing of gaps.

Source of the rules: the documentation of June to September 2014. Answers of 0.5 to 1 MB that took 20 to 75 s are
printed there; history ends yesterday at the latest; chart data is asked for by dates, seven days at most.
"""

from __future__ import annotations

import base64
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
from ingestor.provider.http_client import BodyTooLarge, Deadline, HttpResponse, RequestFailed, send_request
from ingestor.provider.socket.connection import error_text

MAX_RESPONSE_BYTES = 8 << 20  # on its way into the database it takes some twenty times as much memory
MAX_SPLITTABLE_BYTES = 2 << 20  # less where the range can be split: twice the largest documented response
REQUEST_SECONDS = 180.0
SPACING_SECONDS = 2.0  # from the end of one answer to the next question
UNAVAILABLE_BACKOFF = Backoff(first_seconds=15.0, cap_seconds=3600.0)
REFUSED_STATUSES = frozenset({400, 403, 404, 405, 406, 410, 414})

DAY = timedelta(days=1)
MAX_RANGE = timedelta(days=7)
MAX_RANGE_BUCKETS = (
    7 * 24 * 60
)  # a week of minutes is the 0.5 to 1 MB that were printed; of seconds, not quite three hours
_BEFORE = timedelta(microseconds=1)  # the provider's end is the last instant asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class RestRequest:
    """What to GET. Times are in its params."""

    path: str
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestResponse:
    """What came back with 200."""

    text: str
    sent_us: int  # our wall clock when the question was sent: an answer is as old as that


def current_request(path: str, params: Mapping[str, str]) -> RestRequest | None:
    """The rolling window of what ``path`` streams; None where it is not to be had by REST."""
    feed = FEEDS.get(base_name(path))
    if (feed is None and not path.startswith("/real-time/")) or (feed and feed.stream_only) or not _named(params):
        return None
    return RestRequest(path=f"/real-time/{base_name(path)}", params=dict(params))


def history_request(path: str, params: Mapping[str, str], start: datetime, end: datetime) -> RestRequest | None:
    """What ``path`` streamed from ``start`` (UTC) up to ``end``, not included; None where there is no history of it.

    ``end`` is midnight of today at the latest, and the two are at most ``span`` apart.
    """
    feed = FEEDS.get(base_name(path))
    if feed is None or feed.history_path is None or not _named(params):
        return None
    last = end - _BEFORE
    bounds = (
        {"start_date": f"{start:%m-%d-%Y}", "end_date": f"{last:%m-%d-%Y}"}
        if feed.whole_days
        else {"start_ts": _iso(start), "end_ts": _iso(last)}
    )
    historical = feed.history_path
    if feed.by_user and not params.get("ticker"):
        historical = historical.removesuffix("-by-ticker") + "-by-user"
    return RestRequest(path=historical, params={**params, **bounds})


def has_history(path: str) -> bool:
    """Whether past days of what ``path`` streams can be asked for."""
    feed = FEEDS.get(base_name(path))
    return feed is not None and feed.history_path is not None


def uses_dates(path: str) -> bool:
    """Whether its history is asked for in whole days."""
    return FEEDS[base_name(path)].whole_days


def max_range(path: str) -> timedelta:
    """How much history of ``path`` one question may ask for."""
    longest = min(MAX_RANGE, MAX_RANGE_BUCKETS * bucket_length(path))
    return max(longest, DAY) if uses_dates(path) else longest


def bucket_length(path: str) -> timedelta:
    """The provider's bucket; a minute where nothing is known."""
    feed: Feed | None = FEEDS.get(base_name(path))
    return timedelta(seconds=feed.cadence_seconds if feed else 60)


class RestClient:
    """The one who asks. For one thread; ``cut`` may come from any."""

    def __init__(
        self,
        url: str,
        api_key: Callable[[], SecretStr],
        *,
        ca_file: Path | None = None,
        proxy: SecretStr | None = None,
    ) -> None:
        """``url``: the API's root. ``api_key`` is called for each question."""
        self._url = url
        self._api_key = api_key
        self._ca_file = ca_file
        self._proxy = proxy
        self._failures = 0
        self._not_before = 0.0  # boottime of the next question at the earliest
        self._lock = threading.Lock()
        self._deadline: Deadline | None = None
        self._over = False

    @property
    def pause_seconds(self) -> float:
        """How long the provider is to be left alone from now on."""
        return max(0.0, self._not_before - boottime())

    def get(self, question: RestRequest, *, can_split: bool = False) -> RestResponse:
        """Ask, blocking, up to three minutes. To be called when there is no pause any more.

        ``can_split``: less could be asked for at a time, so that ``PIECE_BYTES`` are the most, else ``MAX_BYTES``.

        Raises:
            RestUnavailable: no usable response now. RestRefused: there will be none. ResponseTooLarge: request less.
            TokenRefused: the API key is not accepted (401).
        """
        sent_us = wall_us()
        try:
            answer = self._ask(question, MAX_SPLITTABLE_BYTES if can_split else MAX_RESPONSE_BYTES)
            if answer.status != 200:
                _refuse(question, answer)
            reply = RestResponse(text=_text(question, answer), sent_us=sent_us)
        except (RestUnavailable, TokenRefused):
            self._failures += 1
            self._wait(UNAVAILABLE_BACKOFF.equal_jitter(self._failures, chance()))
            raise
        self._failures = 0
        return reply

    def cancel(self) -> None:
        """End the question under way, and ask none again."""
        with self._lock:
            self._over = True
            if self._deadline:
                self._deadline.cut()

    def _ask(self, question: RestRequest, max_bytes: int) -> HttpResponse:
        basic = base64.b64encode(self._api_key().get_secret_value().encode() + b":").decode()
        deadline = Deadline(REQUEST_SECONDS)
        with self._lock:
            if self._over:
                raise RestUnavailable("we are stopping")
            self._deadline = deadline
        try:
            answer = send_request(
                "GET",
                f"{self._url}{question.path}?{urlencode(question.params)}",
                headers={"Authorization": f"Basic {basic}", "Accept": "application/json"},
                deadline=deadline,
                max_bytes=max_bytes,
                ca_file=self._ca_file,
                proxy=self._proxy,
            )
        except BodyTooLarge as error:
            raise ResponseTooLarge(f"{question.path}: {error}", 200) from None
        except RequestFailed as error:
            raise RestUnavailable(f"{question.path}: {error}") from None
        finally:
            self._wait(SPACING_SECONDS)
        self._wait(retry_after_seconds(answer.headers) or 0.0)
        return answer

    def _wait(self, seconds: float) -> None:
        self._not_before = max(self._not_before, boottime() + seconds)


def _refuse(question: RestRequest, answer: HttpResponse) -> NoReturn:
    message = f"{question.path}: HTTP {answer.status}{_complaint(answer.body)}"
    if answer.status == 401:
        raise TokenRefused(f"{message}: the API key is not accepted; check provider.api_key_file")
    if answer.status in REFUSED_STATUSES:
        raise RestRefused(message, answer.status)
    raise RestUnavailable(message)


def _complaint(body: bytes) -> str:
    """What the provider says about it, if it is an error object as documented."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return f": {error_text(said)}" if isinstance(said, dict) else ""


def _text(question: RestRequest, answer: HttpResponse) -> str:
    try:
        return answer.body.decode("utf-8")
    except UnicodeDecodeError:
        raise RestUnavailable(f"{question.path}: the answer is not UTF-8") from None


def _named(params: Mapping[str, str]) -> bool:
    return bool(params.get("ticker") or params.get("user_id"))


def _iso(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"
