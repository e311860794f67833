"""Rows and payloads as the provider sends them. Times are arguments, in seconds since the epoch.

Source: the provider's documentation of June to September 2014. A ``/real-time/`` path returns a bare list of a rolling
window; a bare stream sends an envelope with the new rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ingestor.provider import catalog
from ingestor.simulator.random_walk import hash_fraction, walk

Style = Literal["numbers", "text"]
Row = dict[str, Any]

# The /real-time/ endpoints of two feeds name their metric differently than the streams.
_REAL_TIME_FIELDS = {"crowd_sentiment": "average_sentiment", "mp_sentiment": "signal_value"}
_USERS = tuple(f"20{index}4307{index}" for index in range(5))
# Documented envelopes show US Eastern time labeled as UTC.
_ENVELOPE_SHIFT = timedelta(hours=4)


def iso(seconds: float) -> str:
    """Format a time as the provider does: ISO 8601, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_stream(path: str) -> bool:
    """Return whether the path is a bare stream name (envelopes), not a ``/real-time/`` endpoint (bare lists)."""
    return not path.startswith("/")


class Market:
    """The provider's data: a value for every feed, metric, ticker and bucket, some of them restated."""

    def __init__(self, seed: int, tickers: tuple[str, ...], cadence_seconds: int | None = None) -> None:
        self.seed = seed
        self.tickers = tickers  # of a subscription without a ticker
        self._cadence_seconds = cadence_seconds
        self._restated: dict[tuple[str, str, int], int] = {}

    def cadence_seconds(self, path: str) -> int:
        """Return the length of the path's buckets."""
        return self._cadence_seconds or catalog.FEEDS[catalog.base_name(path)].cadence_seconds

    def bucket(self, path: str, at: float) -> int:
        """Return the number of the bucket that contains ``at``."""
        return int(at // self.cadence_seconds(path))

    def value(self, path: str, metric: str, ticker: str, bucket: int) -> float | int:
        """Return the value of a canonical metric; it is the same for every form of the path."""
        feed = catalog.base_name(path)
        raw = walk(self.seed, f"{feed}/{metric}/{ticker}", bucket)
        times = self._restated.get((feed, ticker, bucket), 0)
        return _scaled(metric, raw, times)

    def restate(self, path: str, ticker: str, bucket: int) -> None:
        """Change the values of this bucket from now on."""
        key = (catalog.base_name(path), ticker, bucket)
        self._restated[key] = self._restated.get(key, 0) + 1

    def rows(self, path: str, params: Mapping[str, str], first: int, last: int, style: Style) -> list[Row]:
        """Return the rows of the buckets from ``first`` to ``last``, both included, ordered by time."""
        ticker, user_id = params.get("ticker"), params.get("user_id")
        tickers = (ticker,) if ticker else self.tickers
        rows = (self._row(path, name, bucket, style) for bucket in range(first, last + 1) for name in tickers)
        return [row for row in rows if user_id in (None, row.get("user_id"))]

    def _row(self, path: str, ticker: str, bucket: int, style: Style) -> Row:
        feed = catalog.FEEDS[catalog.base_name(path)]
        row: Row = {"ts": iso(bucket * self.cadence_seconds(path))}
        if feed.by_user:
            row["user_id"] = _USERS[int(hash_fraction(self.seed, ticker, bucket) * len(_USERS))]
        row["ticker"] = ticker
        for metric in dict.fromkeys(feed.metrics.values()):
            field = metric if is_stream(path) else _REAL_TIME_FIELDS.get(metric, metric)
            row[field] = _format_value(self.value(path, metric, ticker, bucket), style)
        return row


def envelope(path: str, params: Mapping[str, str], rows: list[Row], at: float) -> dict[str, Any]:
    """Return the envelope of a stream, with its ``timestamp`` shifted as in the documented samples."""
    published = iso(at - _ENVELOPE_SHIFT.total_seconds())
    return {"path": path, "params": dict(params), "timestamp": published, "results": rows}


def _scaled(metric: str, raw: float, restated: int) -> float | int:
    if metric == "volume":
        return int(abs(raw) * 60) + restated
    if metric in ("buzz", "user_score"):
        raw = (raw + 1) / 2
    elif metric.endswith("z_score"):
        raw *= 3
    # Rounded to the digits of the text style, so that both styles give the same double.
    return float(f"{raw + restated / 1000:.16f}")


def _format_value(value: float | int, style: Style) -> float | int | str:
    if style == "numbers":
        return value
    return str(value) if isinstance(value, int) else f"{value:.16f}"
