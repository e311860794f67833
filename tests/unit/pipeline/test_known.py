from __future__ import annotations

from ingestor.pipeline.known import KnownValues
from ingestor.store.batch import Row

SERIES = ("crowd-sentiment", "crowd_sentiment", "AAPL", "")
NONE: frozenset[tuple[tuple[str, str, str, str], int]] = frozenset()


def row(ts_us: int, value: float) -> Row:
    return Row(SERIES, ts_us, value, None, 0, "stream", 1, 0)


def knows(known: KnownValues, series: tuple[str, str, str, str], ts_us: int, value: float) -> bool:
    return not known.news([(series, ts_us, value, 0)])


def test_what_was_committed_is_known_and_nothing_else() -> None:
    known = KnownValues()
    known.learn([row(1, 0.5)], NONE, 0.0)
    assert knows(known, SERIES, 1, 0.5)
    assert not knows(known, SERIES, 1, 0.6)
    assert not knows(known, SERIES, 2, 0.5)


def test_the_newest_value_counts_also_over_an_older_generation() -> None:
    known = KnownValues(generation_seconds=10)
    known.learn([row(1, 0.5)], NONE, 0.0)
    known.learn([row(1, 0.6)], NONE, 10.0)
    assert knows(known, SERIES, 1, 0.6)
    assert not knows(known, SERIES, 1, 0.5)


def test_an_entry_is_good_for_two_generations_at_most() -> None:
    known = KnownValues(generation_seconds=10)
    known.learn([row(1, 0.5)], NONE, 0.0)
    known.learn([row(2, 0.5)], NONE, 10.0)
    assert knows(known, SERIES, 1, 0.5)
    known.learn([row(3, 0.5)], NONE, 20.0)
    assert not knows(known, SERIES, 1, 0.5)


def test_memory_is_bounded() -> None:
    known = KnownValues(capacity=10)
    for ts_us in range(100):
        known.learn([row(ts_us, 0.5)], NONE, 0.0)
    assert sum(knows(known, SERIES, ts_us, 0.5) for ts_us in range(100)) <= 20


def test_of_a_disputed_key_nothing_is_sure() -> None:
    known = KnownValues()
    known.learn([row(1, 0.5)], NONE, 0.0)
    known.learn([row(1, 0.6)], frozenset({(SERIES, 1)}), 1.0)
    assert not knows(known, SERIES, 1, 0.5)
    assert not knows(known, SERIES, 1, 0.6)


def test_after_a_failure_nothing_is_sure() -> None:
    known = KnownValues()
    known.learn([row(1, 0.5)], NONE, 0.0)
    known.forget()
    assert not knows(known, SERIES, 1, 0.5)
