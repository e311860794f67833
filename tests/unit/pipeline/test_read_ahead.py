"""The rule of the dedup cache and of the batch that is built ahead, without threads, files or a database."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from ingestor.core.entries import Entry
from ingestor.errors import SpoolFailed
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.read_ahead import ReadAhead
from ingestor.pipeline.writer_status import WriterStatus
from tests.support.entries import T0, decoder, frame, row

SERIES = ("crowd-sentiment", "crowd_sentiment", "A", "")


class FakeSpool:
    """Entries that are all durable. Reading past ``readable`` fails."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries
        self.synced = self.readable = len(entries)
        self.highest_acked = 0

    def wait(self, after_seq: int, _max_wait_seconds: float, _min_entries: int = 1) -> bool:
        return self.synced > after_seq

    def read(self, after_seq: int, *, max_entries: int) -> list[Entry]:
        if after_seq >= self.readable:
            raise SpoolFailed("unreadable")
        return self._entries[after_seq : min(after_seq + max_entries, self.readable)]


def read_ahead(*values: float, max_rows: int = 1) -> tuple[ReadAhead, RecentValueCache, FakeSpool]:
    """One frame for each value, all of the same series and ts."""
    spool: Any = FakeSpool([(seq, frame([row("A", value=value)])) for seq, value in enumerate(values, 1)])
    cache = RecentValueCache()
    build = partial(BatchBuilder, decoder=decoder())
    policy = BatchPolicy(max_rows=max_rows, max_wait_seconds=0)
    return ReadAhead(spool, policy, build, cache, WriterStatus(), lambda: False), cache, spool


def seqs(builder: BatchBuilder | None) -> list[int]:
    return [seq for seq, _ in builder.entries] if builder else []


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
