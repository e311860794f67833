"""Read a token's claims: its lifetime, the feeds its key may use, and the secrets in it."""

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

# Claims that may be shown. All others are treated as secret.
_PUBLIC = frozenset(
    {"iat", "exp", "nbf", "iss", "aud", "active", "tickers", "rate_limit", "rate_limit_count", "trial_end_at"}
    | {"endpoint_paths", "streaming_endpoint_paths"}
)
_SECRET_NAME = re.compile(r"api|key|mail|pass|hash|salt|secret|name|phone|token|address", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"[a-z _-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token, which opens the socket. Its repr does not contain the value."""

    value: str = field(repr=False)
    requested_at: float  # boottime at which the request was sent: the life of the token may have begun then
    life_seconds: float
    feeds: frozenset[str] | None = None  # that the key may use; None if the claims do not say

    def allows(self, path: str) -> bool:
        """Return whether the claims allow this path. They are undocumented, so False is only worth a warning."""
        return self.feeds is None or base_name(path) in self.feeds

    @property
    def expires_at(self) -> float:
        """The boottime after which the provider no longer accepts it."""
        return self.requested_at + self.life_seconds


def lifetime(claims: Mapping[str, object], date: str | None, configured_seconds: float) -> float:
    """Return the lifetime in seconds: ``exp - iat``, else ``exp`` minus the response's Date, else as configured.

    An implausible result (not positive, over a year) falls back to ``configured_seconds``.
    """
    exp = _number(claims.get("exp"))
    issued = _number(claims.get("iat"))
    if issued is None and date:
        issued = parse_http_date(date)
    if exp is None or issued is None or not 0 < exp - issued <= MAX_LIFETIME_SECONDS:
        return configured_seconds
    return exp - issued


def renewal_time(requested_at: float, life_seconds: float, renew_before_seconds: float) -> float:
    """Return when to renew, on the clock of ``requested_at``: before expiry, but not in the first half of its life."""
    return requested_at + max(life_seconds - renew_before_seconds, life_seconds / 2)


def decode_claims(value: str) -> Mapping[str, Any]:
    """Return the claims of a JWT without verifying it; empty for a token that is not a JWT."""
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def secrets_in(value: str, claims: Mapping[str, Any]) -> frozenset[str]:
    """Return every text to mask for this token: the token itself, its parts, and its private claims."""
    parts = {part for part in value.split(".")[1:] if len(part) >= 8}
    return frozenset({value, *parts, *_private(claims)})


def parse_http_date(http_date: str) -> float | None:
    """Return an HTTP date in seconds since the epoch; None for anything else."""
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def feeds_in(claims: Mapping[str, object]) -> frozenset[str] | None:
    """Return the feeds that the claims name; None if they name none."""
    lists = [claims.get(name) for name in ("endpoint_paths", "streaming_endpoint_paths")]
    paths = [path for paths in lists if isinstance(paths, list) for path in paths if isinstance(path, str)]
    return frozenset(base_name(path) for path in paths) or None


def _private(claims: Mapping[str, Any]) -> Iterator[str]:
    for name, value in claims.items():
        if name not in _PUBLIC:
            for text in _leaves(value):
                # Masking an ordinary word with an ordinary name would mask half of every log line.
                if len(text) >= 4 if _SECRET_NAME.search(name) else len(text) >= 8 and not _PLAIN_WORD.fullmatch(text):
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
