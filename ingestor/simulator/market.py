"""Rows and payloads as the provider prints them. Pure: the time comes in as seconds since the epoch.

Source of the shapes: the provider's documentation of June to September 2014. An answer of a ``/real-time/`` path is a
bare list over a rolling window; a bare stream sends an envelope with what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ingestor.provider import catalog
from ingestor.simulator.random_walk import hash_fraction, walk

Style = Literal["numbers", "text"]
Row = dict[str, Any]

# The /real-time/ endpoints of two feeds call their metric by another name than the streams do.
_REAL_TIME_FIELDS = {"crowd_sentiment": "average_sentiment", "mp_sentiment": "signal_value"}
_USERS = tuple(f"20{index}4307{index}" for index in range(5))
# Printed envelopes show US Eastern time labelled as UTC.
_ENVELOPE_SHIFT = timedelta(hours=4)


def iso(seconds: float) -> str:
    """ISO 8601 UTC with milliseconds, as the provider writes it."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def is_stream(path: str) -> bool:
    """Whether the path is a bare stream name (envelopes) and no ``/real-time/`` endpoint (bare lists)."""
    return not path.startswith("/")


class Market:
    """What the provider knows: a value for every feed, metric, ticker and bucket, and which of them it has restated."""

    def __init__(self, seed: int, tickers: tuple[str, ...], cadence_seconds: int | None = None) -> None:
        self.seed = seed
        self.tickers = tickers  # what a subscription without a ticker gets
        self._cadence_seconds = cadence_seconds
        self._restated: dict[tuple[str, str, int], int] = {}

    def cadence_seconds(self, path: str) -> int:
        """The length of the path's buckets."""
        return self._cadence_seconds or catalog.FEEDS[catalog.base_name(path)].cadence_seconds

    def bucket(self, path: str, at: float) -> int:
        """The number of the bucket that ``at`` (seconds since the epoch) lies in."""
        return int(at // self.cadence_seconds(path))

    def value(self, path: str, metric: str, ticker: str, bucket: int) -> float | int:
        """What the rows of this path say for a canonical metric; the same for every form of the path."""
        feed = catalog.base_name(path)
        raw = walk(self.seed, f"{feed}/{metric}/{ticker}", bucket)
        times = self._restated.get((feed, ticker, bucket), 0)
        return _scaled(metric, raw, times)

    def restate(self, path: str, ticker: str, bucket: int) -> None:
        """From now on the row of this bucket carries other values."""
        key = (catalog.base_name(path), ticker, bucket)
        self._restated[key] = self._restated.get(key, 0) + 1

    def rows(self, path: str, params: Mapping[str, str], first: int, last: int, style: Style) -> list[Row]:
        """The rows of the buckets from ``first`` to ``last``, both included, ordered by time."""
        named = params.get("ticker")
        tickers = (named,) if named else self.tickers
        wanted = (self._row(path, ticker, bucket, style) for bucket, ticker in _grid(first, last, tickers))
        user_id = params.get("user_id")
        return [row for row in wanted if user_id in (None, row.get("user_id"))]

    def _row(self, path: str, ticker: str, bucket: int, style: Style) -> Row:
        feed = catalog.FEEDS[catalog.base_name(path)]
        row: Row = {"ts": iso(bucket * self.cadence_seconds(path))}
        if feed.by_user:
            row["user_id"] = _USERS[int(hash_fraction(self.seed, ticker, bucket) * len(_USERS))]
        row["ticker"] = ticker
        for metric in dict.fromkeys(feed.metrics.values()):
            field = metric if is_stream(path) else _REAL_TIME_FIELDS.get(metric, metric)
            row[field] = _written(self.value(path, metric, ticker, bucket), style)
        return row


def envelope(path: str, params: Mapping[str, str], rows: list[Row], at: float) -> dict[str, Any]:
    """The later shape, with the ``timestamp`` as far off as in the printed samples."""
    published = iso(at - _ENVELOPE_SHIFT.total_seconds())
    return {"path": path, "params": dict(params), "timestamp": published, "results": rows}


def _grid(first: int, last: int, tickers: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    return ((bucket, ticker) for bucket in range(first, last + 1) for ticker in tickers)


def _scaled(metric: str, raw: float, restated: int) -> float | int:
    if metric == "volume":
        return int(abs(raw) * 60) + restated
    if metric in ("buzz", "user_score"):
        raw = (raw + 1) / 2
    elif metric.endswith("z_score"):
        raw *= 3
    # Rounded as it is written, so that both styles of writing mean the same double.
    return float(f"{raw + restated / 1000:.16f}")


def _written(value: float | int, style: Style) -> float | int | str:
    if style == "numbers":
        return value
    return str(value) if isinstance(value, int) else f"{value:.16f}"
