"""Values that this instance wrote lately, so that the same rolling window is not sent to the database again.

Nearly every row of a response was in the response before. ``read_ahead.ReadAhead`` has the rule of when the content is
valid. A cached value is current in the database unless another instance restated it; because of that it expires.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ingestor.core.entries import SeriesKey
from ingestor.pipeline.decoder import DecodedValue

CAPACITY = 50_000  # values of a generation: some 5 MB, and the windows of 800 tickers
GENERATION_SECONDS = 300.0  # a value expires after one to two generations

_Generation: TypeAlias = dict[SeriesKey, dict[int, float]]  # series → ts → value


class RecentValueCache:
    """Two generations of values: new values go into the young one, lookups search both, the old one expires whole."""

    def __init__(self, capacity: int = CAPACITY, generation_seconds: float = GENERATION_SECONDS) -> None:
        self._capacity = capacity
        self._generation_seconds = generation_seconds
        self._rotated_at = 0.0
        self.clear()

    def filter_new(self, values: Iterable[DecodedValue]) -> list[DecodedValue]:
        """Return the values that differ from the cached value of their series and ts, and cache them."""
        new: list[DecodedValue] = []
        last: SeriesKey | None = None
        young: dict[int, float] = {}
        old: dict[int, float] | None = None
        for decoded in values:
            series, ts_us, value, _ = decoded
            if series is not last:  # most responses have one series
                last, old = series, self._old.get(series)
                young = self._young.get(series) or self._young.setdefault(series, {})
            cached = young.get(ts_us)
            if cached is None:
                if old is not None and old.get(ts_us) == value:
                    continue
                self._count += 1
            elif cached == value:
                continue
            young[ts_us] = value
            new.append(decoded)
        return new

    def discard(self, keys: Iterable[tuple[SeriesKey, int]]) -> None:
        """Remove the values of these (series, ts)."""
        for series, ts_us in keys:
            for generation in (self._young, self._old):
                generation.get(series, {}).pop(ts_us, None)

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

    def snapshot(self) -> dict[tuple[SeriesKey, int], float]:
        """Return every cached value."""
        generations = (self._old, self._young)
        return {(series, ts): v for values in generations for series, of in values.items() for ts, v in of.items()}
