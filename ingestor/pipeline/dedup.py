"""Values that each connection said lately, so that its rolling window is not sent to the database again and again.

Nearly every row of a response was in the response before. A value is left out only if the same connection said it
before, and no connection has said another one since. A new connection is another witness: what it says must be compared
with the database, where another instance may have written a value that came over neither. For the same reason cached
values expire. ``read_ahead.ReadAhead`` has the rule of when the content is valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ingestor.core.entries import SeriesKey
from ingestor.pipeline.plain_rows import DecodedValue

CAPACITY = 50_000  # values of a generation: some 5 MB, and the windows of 800 tickers
GENERATION_SECONDS = 300.0  # a value expires after one to two generations

CONNECTIONS = 4  # of a series: a connection and its replacement, for two paths that deliver the same feed

_Values: TypeAlias = dict[int, float]  # ts → value
_Generation: TypeAlias = dict[SeriesKey, dict[str, _Values]]  # series → connection → values


class RecentValueCache:
    """Two generations of values: new values go into the young one, lookups search both, the old one expires whole."""

    def __init__(self, capacity: int = CAPACITY, generation_seconds: float = GENERATION_SECONDS) -> None:
        self._capacity = capacity
        self._generation_seconds = generation_seconds
        self._rotated_at = 0.0
        self.clear()

    def filter_new(self, values: Iterable[DecodedValue], connection: str) -> list[DecodedValue]:
        """Return the values that ``connection`` did not say before, or not last, and cache them."""
        new: list[DecodedValue] = []
        last: SeriesKey | None = None
        young: _Values = {}
        old: _Values | None = None
        is_shared = False
        for decoded in values:
            series, ts_us, value, _ = decoded
            if series is not last:  # most responses have one series
                last, by_connection = series, self._old.get(series)
                old = by_connection.get(connection) if by_connection else None
                is_shared = by_connection is not None and len(by_connection) > (old is not None)
                by_connection = self._young.get(series) or self._young.setdefault(series, {})
                young = by_connection.get(connection) or _add_connection(by_connection, connection)
                is_shared = is_shared or len(by_connection) > 1
            cached = young.get(ts_us)
            if cached is None:
                if old is not None:
                    if old.get(ts_us) == value:
                        continue
                    old.pop(ts_us, None)
                self._count += 1
            elif cached == value:
                continue
            young[ts_us] = value
            if is_shared:
                self._discard_others(series, ts_us, value)
            new.append(decoded)
        return new

    def discard_others(self, values: Iterable[DecodedValue]) -> None:
        """Remove the values that differ from these, which no connection said."""
        for series, ts_us, value, _ in values:
            self._discard_others(series, ts_us, value)

    def _discard_others(self, series: SeriesKey, ts_us: int, value: float) -> None:
        for generation in (self._young, self._old):
            for values in generation.get(series, {}).values():
                if values.get(ts_us, value) != value:
                    del values[ts_us]

    def discard(self, keys: Iterable[tuple[SeriesKey, int]]) -> None:
        """Remove the values of these (series, ts)."""
        for series, ts_us in keys:
            for generation in (self._young, self._old):
                for values in generation.get(series, {}).values():
                    values.pop(ts_us, None)

    def clear(self) -> None:
        self._young: _Generation = {}
        self._old: _Generation = {}
        self._count = 0

    def rotate(self, now_seconds: float) -> None:
        """Begin another generation if the young one is full, or has lasted long enough."""
        if self._count >= self._capacity or now_seconds - self._rotated_at >= self._generation_seconds:
            self._old, self._young = self._young, {}
            self._count = 0
            self._rotated_at = now_seconds

    def snapshot(self) -> dict[tuple[str, SeriesKey, int], float]:
        """Return every cached value by connection, series and ts."""
        return {
            (connection, series, ts_us): value
            for generation in (self._old, self._young)
            for series, by_connection in generation.items()
            for connection, values in by_connection.items()
            for ts_us, value in values.items()
        }


def _add_connection(by_connection: dict[str, _Values], connection: str) -> _Values:
    """Return the values of a connection that has none yet, at the expense of the one that was added first."""
    if connection not in by_connection and len(by_connection) >= CONNECTIONS:
        del by_connection[next(iter(by_connection))]
    return by_connection.setdefault(connection, {})
