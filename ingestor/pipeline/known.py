"""Values that this instance has committed lately, so that a rolling window is not sent again whole. Bounded; no clock.

Nearly every row of a response was in the one before. What stands here is current in the database, unless another
instance restated it since: entries are good for a while only, so that this is met.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ingestor.pipeline.decode import Observation
from ingestor.store.batch import Row, SeriesKey

CAPACITY = 100_000  # values of a generation: some 10 MB
GENERATION_SECONDS = 300.0  # an entry lives for one to two generations

_Generation: TypeAlias = dict[SeriesKey, dict[int, float]]  # series → ts → value


class KnownValues:
    """Two generations of values: the younger is written to, both are looked at, the elder is dropped whole."""

    def __init__(self, capacity: int = CAPACITY, generation_seconds: float = GENERATION_SECONDS) -> None:
        self._capacity = capacity
        self._generation_seconds = generation_seconds
        self._begun = 0.0
        self.forget()

    def news(self, observations: Iterable[Observation]) -> list[Observation]:
        """Without those whose value is surely what the database holds as current.

        If another value is known, none is from now on: the batch that this one goes into may go on to say the one
        before again.
        """
        news: list[Observation] = []
        last: SeriesKey | None = None
        young: dict[int, float] = {}
        old: dict[int, float] = {}
        for one in observations:
            series, ts_us, value, _ = one
            if series is not last:  # a response is mostly of one
                last, young, old = series, self._young.get(series, {}), self._old.get(series, {})
            known = young.get(ts_us)
            if known is None:
                known = old.get(ts_us)
            if known == value:
                continue
            if known is not None:
                self._drop(series, ts_us)
            news.append(one)
        return news

    def learn(self, rows: Iterable[Row], disputed: frozenset[tuple[SeriesKey, int]], now_seconds: float) -> None:
        """Take in what COMMIT has returned for. Of ``disputed`` keys nothing is sure."""
        self._age(now_seconds)
        young, last, known = self._young, None, {}
        for series, ts_us, value, *_ in rows:
            if disputed and (series, ts_us) in disputed:
                self._drop(series, ts_us)
                continue
            if series is not last:
                last, known = series, young.setdefault(series, {})
            known[ts_us] = value
            self._count += 1

    def forget(self) -> None:
        """Nothing is sure any more: a rollback, an unknown outcome, another connection."""
        self._young: _Generation = {}
        self._old: _Generation = {}
        self._count = 0

    def _age(self, now_seconds: float) -> None:
        if self._count >= self._capacity or now_seconds - self._begun >= self._generation_seconds:
            self._old, self._young = self._young, {}
            self._count = 0
            self._begun = now_seconds

    def _drop(self, series: SeriesKey, ts_us: int) -> None:
        for generation in (self._young, self._old):
            generation.get(series, {}).pop(ts_us, None)
