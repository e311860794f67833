"""Values that this instance has said lately, so that a rolling window is not sent again whole. Bounded; no clock.

Nearly every row of a response was in the one before. A value stands here from the moment it goes into a batch: if that
batch fails, all is forgotten, and so is what was assembled since. What was committed is current in the database, unless
another instance restated it: entries are good for a while only, so that this is met.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ingestor.core.entries import SeriesKey
from ingestor.pipeline.decoder import DecodedValue

CAPACITY = 50_000  # values of a generation: some 5 MB, and the windows of 800 tickers
GENERATION_SECONDS = 300.0  # an entry lives for one to two generations

_Generation: TypeAlias = dict[SeriesKey, dict[int, float]]  # series → ts → value


class RecentValueCache:
    """Two generations of values: the younger is written to, both are looked at, the elder is dropped whole."""

    def __init__(self, capacity: int = CAPACITY, generation_seconds: float = GENERATION_SECONDS) -> None:
        self._capacity = capacity
        self._generation_seconds = generation_seconds
        self._begun = 0.0
        self.clear()

    def filter_new(self, observations: Iterable[DecodedValue]) -> list[DecodedValue]:
        """Without those that say again what was said last of their series and ts; the others are known from now on."""
        news: list[DecodedValue] = []
        last: SeriesKey | None = None
        young: dict[int, float] = {}
        old: dict[int, float] | None = None
        for one in observations:
            series, ts_us, value, _ = one
            if series is not last:  # a response is mostly of one
                last, old = series, self._old.get(series)
                young = self._young.get(series) or self._young.setdefault(series, {})
            known = young.get(ts_us)
            if known is None:
                if old is not None and old.get(ts_us) == value:
                    continue
                self._count += 1
            elif known == value:
                continue
            young[ts_us] = value
            news.append(one)
        return news

    def discard(self, keys: Iterable[tuple[SeriesKey, int]]) -> None:
        """Of these (series, ts) nothing is sure."""
        for series, ts_us in keys:
            for generation in (self._young, self._old):
                generation.get(series, {}).pop(ts_us, None)

    def clear(self) -> None:
        """Nothing is sure any more: a rollback, an unknown outcome, another connection."""
        self._young: _Generation = {}
        self._old: _Generation = {}
        self._count = 0

    def rotate(self, now_seconds: float) -> None:
        """Begin another generation if this one is full, or has lasted long enough."""
        if self._count >= self._capacity or now_seconds - self._begun >= self._generation_seconds:
            self._old, self._young = self._young, {}
            self._count = 0
            self._begun = now_seconds
