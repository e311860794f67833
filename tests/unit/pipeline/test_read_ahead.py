"""The rule of the dedup cache and of the batch that is built ahead, without threads, files or a database."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from ingestor.core.entries import SpooledItem, items_after, split_into_entries
from ingestor.errors import SpoolFailed
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.read_ahead import AHEAD_ENTRIES, ReadAhead
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.spool.chunk_store import SpoolUnreadable
from tests.support.entries import T0, decoder, frame, row, run

SERIES = ("crowd-sentiment", "crowd_sentiment", "A", "")


class FakeSpool:
    """Entries that are all durable. Reading past ``readable`` fails."""

    def __init__(self, items: list[SpooledItem]) -> None:
        self._items = items
        self.synced = self.readable = len(list(split_into_entries(items)))
        self.highest_acked = 0

    def wait(self, after_seq: int, _max_wait_seconds: float, _min_entries: int = 1) -> bool:
        return self.synced > after_seq

    def read_items(self, after_seq: int, *, max_entries: int) -> list[SpooledItem]:
        if after_seq >= self.readable:
            raise SpoolFailed("unreadable")
        return [item for item in items_after(after_seq, self._items) if item[0] <= self.readable][:max_entries]


def read_ahead(*values: float, max_rows: int = 1) -> tuple[ReadAhead, RecentValueCache, FakeSpool]:
    """One frame for each value, all of the same series and ts."""
    return read_items([(seq, frame([row("A", value=value)])) for seq, value in enumerate(values, 1)], max_rows=max_rows)


def read_items(items: list[SpooledItem], **limits: int) -> tuple[ReadAhead, RecentValueCache, FakeSpool]:
    spool: Any = FakeSpool(items)
    cache = RecentValueCache()
    build = partial(BatchBuilder, decoder=decoder())
    policy = BatchPolicy(max_wait_seconds=0, **limits)
    return ReadAhead(spool, policy, build, cache, WriterStatus(), lambda: False), cache, spool


def seqs(builder: BatchBuilder | None) -> list[int]:
    return [seq for seq, _ in split_into_entries(builder.items)] if builder else []


@pytest.mark.parametrize(
    ("has_next", "not_current", "next_seqs", "cached"),
    [
        pytest.param(False, [], [], {("c0ffee000001", SERIES, T0): 1.0}, id="all is current"),
        pytest.param(True, [], [2], {("c0ffee000001", SERIES, T0): 2.0}, id="all is current, next batch exists"),
        pytest.param(False, [(SERIES, T0)], [], {}, id="not current"),
        pytest.param(True, [(SERIES, T0)], [], {}, id="not current, next batch exists"),
    ],
)
def test_confirm_keeps_only_what_is_valid(
    has_next: bool, not_current: list[Any], next_seqs: list[int], cached: dict[Any, float]
) -> None:
    ahead, cache, _ = read_ahead(1.0, 2.0)
    assert seqs(ahead.collect_batch(0, 0)) == [1]
    if has_next:
        ahead.build_next(1, lambda: False)
    ahead.confirm(not_current)
    assert (seqs(ahead.next_batch), cache.snapshot()) == (next_seqs, cached)
    assert seqs(ahead.collect_batch(1, 0)) == [2]


def test_invalidate_rebuilds_next_batch_in_order_without_dedup() -> None:
    ahead, cache, _ = read_ahead(1.0, 1.0)
    first = ahead.collect_batch(0, 0)
    ahead.build_next(first.batch.last_seq, lambda: False)
    assert ahead.next_batch is not None
    assert ahead.next_batch.batch.rows == []  # a repetition of the first batch's value
    ahead.invalidate()
    assert (ahead.next_batch, cache.snapshot()) == (None, {})
    again = ahead.collect_batch(first.batch.last_seq, 0)
    assert (seqs(again), len(again.batch.rows)) == ([2], 1)


def test_reset_reads_from_the_new_position() -> None:
    ahead, _, _ = read_ahead(1.0, 2.0, 3.0)
    ahead.collect_batch(0, 0)
    ahead.build_next(1, lambda: False)
    ahead.reset()
    assert seqs(ahead.collect_batch(0, 0)) == [1]


def test_entries_before_a_spool_failure_are_collected_first() -> None:
    ahead, _, spool = read_ahead(1.0, 2.0, 3.0, max_rows=5)
    spool.readable = 2
    assert seqs(ahead.collect_batch(0, 0)) == [1, 2]
    with pytest.raises(SpoolFailed):
        ahead.collect_batch(2, 0)


def test_build_next_keeps_entries_before_a_spool_failure() -> None:
    ahead, _, spool = read_ahead(1.0, 2.0, 3.0)
    spool.readable = 2
    ahead.collect_batch(0, 0)
    ahead.build_next(1, lambda: False)
    assert seqs(ahead.next_batch) == [2]


RUN = run(*(frame([row("A", minute)], received_us=T0 + minute) for minute in range(7)))
LIMITS: list[Any] = [
    pytest.param({"max_rows": 3}, [[1, 2, 3], [4, 5, 6], [7]], id="rows"),
    pytest.param({"max_rows": 9, "max_bytes": len(RUN.texts[0]) + 1}, [[1, 2], [3, 4], [5, 6], [7]], id="bytes"),
]


@pytest.mark.parametrize(("limits", "batches"), LIMITS)
def test_batch_is_full_in_the_middle_of_a_run(limits: dict[str, int], batches: list[list[int]]) -> None:
    ahead, _, _ = read_items([(1, RUN)], **limits)
    for expected in batches:
        builder = ahead.collect_batch(expected[0] - 1, 0)
        assert seqs(builder) == [row.seq for row in builder.batch.rows] == expected
        assert builder.batch.last_seq == expected[-1]
        assert builder.batch.first_us == T0 + expected[0] - 1
        ahead.confirm(())


def test_run_is_read_from_the_position_on() -> None:
    ahead, _, _ = read_items([(1, RUN)], max_rows=9)
    assert seqs(ahead.collect_batch(4, 0)) == [5, 6, 7]


@pytest.mark.parametrize("first_seq", [7, 9])
def test_missing_or_repeated_entry_after_a_run_is_noticed(first_seq: int) -> None:
    ahead, _, _ = read_items([(1, RUN), (first_seq, RUN)], max_rows=99)
    with pytest.raises(SpoolUnreadable):
        ahead.collect_batch(0, 0)


def test_next_batch_is_built_in_parts_of_a_run() -> None:
    ahead, _, _ = read_items([(1, run(*[frame([])] * (AHEAD_ENTRIES + 5)))], max_rows=999)
    committed = iter([False, True])
    ahead.build_next(0, lambda: next(committed))
    assert seqs(ahead.next_batch) == list(range(1, AHEAD_ENTRIES + 1))
    assert seqs(ahead.collect_batch(0, 0)) == list(range(1, AHEAD_ENTRIES + 6))
