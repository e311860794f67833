from __future__ import annotations

from ingestor.pipeline.dedup import RecentValueCache

SERIES = ("crowd-sentiment", "crowd_sentiment", "AAPL", "")


def news(known: RecentValueCache, ts_us: int, value: float) -> bool:
    return bool(known.filter_new([(SERIES, ts_us, value, 0)]))


def test_what_was_said_is_known_and_nothing_else() -> None:
    known = RecentValueCache()
    assert known.filter_new([(SERIES, 1, 0.5, 0), (SERIES, 1, 0.5, 1)]) == [(SERIES, 1, 0.5, 0)]
    assert not news(known, 1, 0.5)
    assert news(known, 2, 0.5)


def test_only_what_was_said_last_is_known() -> None:
    known = RecentValueCache()
    assert [news(known, 1, value) for value in (0.5, 0.6, 0.5, 0.5, 0.6)] == [True, True, True, False, True]


def test_the_newest_value_counts_also_over_an_older_generation() -> None:
    known = RecentValueCache(generation_seconds=10)
    news(known, 1, 0.5)
    known.rotate(10.0)
    assert news(known, 1, 0.6)
    assert not news(known, 1, 0.6)
    assert news(known, 1, 0.5)


def test_an_entry_is_good_for_two_generations_at_most() -> None:
    known = RecentValueCache(generation_seconds=10)
    news(known, 1, 0.5)
    known.rotate(10.0)
    assert not news(known, 1, 0.5)
    known.rotate(20.0)
    assert news(known, 1, 0.5)


def test_memory_is_bounded() -> None:
    known = RecentValueCache(capacity=10)
    for ts_us in range(100):
        news(known, ts_us, 0.5)
        known.rotate(0.0)
    assert sum(not news(known, ts_us, 0.5) for ts_us in range(100)) <= 20


def test_what_is_dropped_is_not_sure_in_either_generation() -> None:
    known = RecentValueCache(generation_seconds=10)
    news(known, 1, 0.5)
    known.rotate(10.0)
    news(known, 2, 0.5)
    known.discard([(SERIES, 1), (SERIES, 2)])
    assert news(known, 1, 0.5)
    assert news(known, 2, 0.5)


def test_after_a_failure_nothing_is_sure() -> None:
    known = RecentValueCache()
    news(known, 1, 0.5)
    known.clear()
    assert news(known, 1, 0.5)
