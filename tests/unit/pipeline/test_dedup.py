from __future__ import annotations

import gc

from ingestor.pipeline import dedup
from ingestor.pipeline.dedup import CONNECTIONS, RecentValueCache

SERIES = ("crowd-sentiment", "crowd_sentiment", "AAPL", "")


def is_new(cache: RecentValueCache, ts_us: int, value: float, connection: str = "a") -> bool:
    return bool(cache.filter_new([(SERIES, ts_us, value, 0)], connection))


def test_dedup_drops_repeated_value() -> None:
    cache = RecentValueCache()
    assert cache.filter_new([(SERIES, 1, 0.5, 0), (SERIES, 1, 0.5, 1)], "a") == [(SERIES, 1, 0.5, 0)]
    assert not is_new(cache, 1, 0.5)
    assert is_new(cache, 2, 0.5)


def test_dedup_compares_with_the_last_value_only() -> None:
    cache = RecentValueCache()
    assert [is_new(cache, 1, value) for value in (0.5, 0.6, 0.5, 0.5, 0.6)] == [True, True, True, False, True]


def test_dedup_prefers_the_young_generation() -> None:
    cache = RecentValueCache(generation_seconds=10)
    is_new(cache, 1, 0.5)
    cache.rotate(10.0)
    assert is_new(cache, 1, 0.6)
    assert not is_new(cache, 1, 0.6)
    assert is_new(cache, 1, 0.5)


def test_cached_value_expires_after_two_generations() -> None:
    cache = RecentValueCache(generation_seconds=10)
    is_new(cache, 1, 0.5)
    cache.rotate(10.0)
    assert not is_new(cache, 1, 0.5)
    cache.rotate(20.0)
    assert is_new(cache, 1, 0.5)


def test_dedup_cache_is_bounded() -> None:
    cache = RecentValueCache(capacity=10)
    for ts_us in range(100):
        is_new(cache, ts_us, 0.5)
        cache.rotate(0.0)
    assert sum(not is_new(cache, ts_us, 0.5) for ts_us in range(100)) <= 20


def test_expired_values_are_released_without_the_garbage_collector() -> None:
    def count() -> int:
        return sum(isinstance(known, dedup._KnownValues) for known in gc.get_objects())

    cache, before = RecentValueCache(generation_seconds=10), count()
    gc.disable()
    try:
        for ts_us in range(9):
            is_new(cache, ts_us, 0.5)
            cache.rotate(10.0 * (ts_us + 1))
        assert count() - before == 1
    finally:
        gc.enable()


def test_discard_removes_value_from_both_generations() -> None:
    cache = RecentValueCache(generation_seconds=10)
    is_new(cache, 1, 0.5)
    cache.rotate(10.0)
    is_new(cache, 2, 0.5)
    cache.discard([(SERIES, 1), (SERIES, 2)])
    assert is_new(cache, 1, 0.5)
    assert is_new(cache, 2, 0.5)


def test_clear_removes_every_value() -> None:
    cache = RecentValueCache()
    is_new(cache, 1, 0.5)
    cache.clear()
    assert is_new(cache, 1, 0.5)


def test_snapshot_has_the_last_value_of_both_generations() -> None:
    cache = RecentValueCache(generation_seconds=10)
    for ts_us, value in ((1, 0.5), (2, 0.5)):
        is_new(cache, ts_us, value)
    cache.rotate(10.0)
    is_new(cache, 2, 0.6)
    assert cache.snapshot() == {("a", SERIES, 1): 0.5, ("a", SERIES, 2): 0.6}


def test_dedup_sends_known_value_of_new_connection_once() -> None:
    cache = RecentValueCache()
    assert [is_new(cache, 1, 0.1, connection) for connection in "ababab"] == [True, True, False, False, False, False]


def test_dedup_sends_value_after_another_connection_said_otherwise() -> None:
    cache = RecentValueCache(generation_seconds=10)
    said = [("a", 0.1), ("b", 0.2), ("a", 0.1), ("a", 0.1), ("b", 0.1), ("b", 0.2)]
    assert [is_new(cache, 1, value, connection) for connection, value in said] == [True, True, True, False, True, True]
    cache.rotate(10.0)
    assert [is_new(cache, 1, value, connection) for connection, value in said] == [True, True, True, False, True, True]


def test_dedup_forgets_a_value_that_was_restated_before_it_expired() -> None:
    cache = RecentValueCache(generation_seconds=10)
    is_new(cache, 1, 0.1)
    cache.rotate(10.0)
    assert is_new(cache, 1, 0.2)
    cache.discard_others([(SERIES, 1, 0.1, 0)])
    assert is_new(cache, 1, 0.1)


def test_value_of_no_connection_removes_those_that_differ_only() -> None:
    cache = RecentValueCache()
    for ts_us, connection in ((1, "a"), (1, "b"), (2, "a")):
        is_new(cache, ts_us, 0.5, connection)
    cache.discard_others([(SERIES, 1, 0.6, 0), (SERIES, 2, 0.5, 1), (SERIES, 3, 0.5, 2)])
    assert cache.snapshot() == {("a", SERIES, 2): 0.5}


def test_dedup_keeps_the_latest_connections_of_a_series() -> None:
    cache = RecentValueCache()
    for number in range(100):
        assert is_new(cache, 1, 0.5, f"connection {number}")
    assert len(cache.snapshot()) == CONNECTIONS
    assert not is_new(cache, 1, 0.5, "connection 99")
