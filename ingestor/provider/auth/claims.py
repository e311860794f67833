"""What a token says: how long it lives, what its key may use, and what in it must not be seen. Pure."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from ingestor.provider.catalog import base_name

MAX_LIFETIME_SECONDS = 366 * 86400.0

# Claims that may be shown. All others count as secret.
_PUBLIC = frozenset(
    {"iat", "exp", "nbf", "iss", "aud", "active", "tickers", "rate_limit", "rate_limit_count", "trial_end_at"}
    | {"endpoint_paths", "streaming_endpoint_paths"}
)
_TELLING = re.compile(r"api|key|mail|pass|hash|salt|secret|name|phone|token|address", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"[a-z _-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What opens the socket. Its repr shows nothing of it."""

    value: str = field(repr=False)
    fetched_at: float  # seconds of CLOCK_BOOTTIME at the reply
    life_seconds: float
    feeds: frozenset[str] | None = None  # that the key may use; None where the claims do not say

    def allows(self, path: str) -> bool:
        """Whether the key may use this path, as far as the claims say: they are undocumented, so a no is a warning."""
        return self.feeds is None or base_name(path) in self.feeds

    @property
    def expires_at(self) -> float:
        """Seconds of CLOCK_BOOTTIME after which the provider no longer takes it."""
        return self.fetched_at + self.life_seconds


def lifetime(claims: Mapping[str, object], date: str | None, configured_seconds: float) -> float:
    """How many seconds a token lives: ``exp - iat``, else ``exp`` less the reply's Date, else as configured.

    A result that makes no sense (not positive, over a year) falls back to ``configured_seconds``.
    """
    exp = _number(claims.get("exp"))
    begun = _number(claims.get("iat"))
    if begun is None and date:
        begun = parse_http_date(date)
    if exp is None or begun is None or not 0 < exp - begun <= MAX_LIFETIME_SECONDS:
        return configured_seconds
    return exp - begun


def renewal_time(fetched_at: float, life_seconds: float, renew_before_seconds: float) -> float:
    """When to renew, on the clock of ``fetched_at``: before the end, but never in the first half of the life."""
    return fetched_at + max(life_seconds - renew_before_seconds, life_seconds / 2)


def decode_claims(value: str) -> Mapping[str, Any]:
    """What a JWT says, unverified; empty for a token that is not a JWT."""
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def secrets_in(value: str, claims: Mapping[str, Any]) -> frozenset[str]:
    """Every text that must not be seen once this token is here: itself, its parts, and its private claims."""
    parts = {part for part in value.split(".")[1:] if len(part) >= 8}
    return frozenset({value, *parts, *_private(claims)})


def parse_http_date(http_date: str) -> float | None:
    """Seconds since the epoch of an HTTP date; None for anything else."""
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def feeds_in(claims: Mapping[str, object]) -> frozenset[str] | None:
    """The feeds that the claims name; None where they do not say."""
    lists = [claims.get(name) for name in ("endpoint_paths", "streaming_endpoint_paths")]
    paths = [path for one in lists if isinstance(one, list) for path in one if isinstance(path, str)]
    return frozenset(base_name(path) for path in paths) or None


def _private(claims: Mapping[str, Any]) -> Iterator[str]:
    for name, value in claims.items():
        if name not in _PUBLIC:
            for text in _leaves(value):
                # An ordinary word under an ordinary name would mask half of every log line.
                if len(text) >= 4 if _TELLING.search(name) else len(text) >= 8 and not _PLAIN_WORD.fullmatch(text):
                    yield text


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
