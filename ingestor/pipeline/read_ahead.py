"""Read entries from the spool and build batches from them, one batch ahead of the commit."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeAlias

from ingestor.core.clock import boottime
from ingestor.core.entries import FrameRun, SeriesKey, SpooledItem, count_entries, recorded_us
from ingestor.errors import SpoolFailed
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.spool.chunk_store import SpoolUnreadable
from ingestor.spool.spool import Spool

AHEAD_WAIT_SECONDS = 1.0  # for an entry to build ahead from; a commit that ends wakes the spool earlier
AHEAD_ENTRIES = 100  # decoded between two checks whether the commit has ended

NewBuilder: TypeAlias = Callable[..., BatchBuilder]  # first_seq: int, cache: RecentValueCache | None


class ReadAhead:
    """Builds the batches that the writer commits, in seq order. Used by the writer's thread only.

    While a batch is being committed, the next one is built on the assumption that the first commits unchanged. The
    dedup cache rests on the same assumption: a value enters it when it is put into a batch, before that batch is
    committed. So one rule governs both, and every commit ends in ``confirm`` or ``invalidate``:

    * The batch was committed and all its values are current: cache and next batch are valid.
    * It was committed, but some of its values are not current: they leave the cache. If a next batch was built, it may
      lack repetitions of them, and its own values are in the cache: both are invalid.
    * It failed, or its outcome is unknown, or the position or the samples were changed otherwise: both are invalid.

    If they are invalid, the cache is cleared, and the entries of the next batch are built into a batch once more.
    """

    def __init__(
        self,
        spool: Spool,
        policy: BatchPolicy,
        new_builder: NewBuilder,
        cache: RecentValueCache,
        status: WriterStatus,
        is_draining: Callable[[], bool],
    ) -> None:
        self.next_batch: BatchBuilder | None = None  # built while the one before it is committed
        self._spool = spool
        self._policy = policy
        self._new_builder = new_builder
        self._cache = cache
        self._status = status
        self._is_draining = is_draining
        self.decoded_upto = spool.highest_acked  # entries up to here tell nothing new of what is received
        self._unbatched: deque[SpooledItem] = deque()  # what was read and is not in a batch
        self._started_at = 0.0  # time.monotonic() when the first entry was added to the batch that is being built

    def collect_batch(self, after_seq: int, idle_seconds: float) -> BatchBuilder:
        """Return the next batch when it is full, or its oldest entry has waited long enough.

        Without any entry it is returned empty after ``idle_seconds``. Raises SpoolFailed if no entry can be read.
        """
        builder = self.next_batch or self._begin_batch(after_seq + 1, self._cache)
        self.next_batch = None
        while not (self.is_full(builder) or (builder.units and self._is_draining())):
            wanted = self._policy.entries_to_full(rows=builder.units, entries=builder.entry_count)
            try:
                if not self.read_entries(builder.batch.last_seq, self._wait_seconds(builder, idle_seconds), wanted):
                    break
            except SpoolFailed:
                if not builder.items:
                    raise
                break  # the entries that could be read are written first; the next call raises
            if not builder.units:
                self._status.oldest_us = recorded_us(self._unbatched[0][1])
            self._add_entries(builder, sys.maxsize)
        return builder

    def build_next(self, after_seq: int, is_committed: Callable[[], bool]) -> None:
        """Build the batch that follows ``after_seq``, until it is full or the batch before it is committed."""
        builder = self._begin_batch(after_seq + 1, self._cache)
        try:
            while not (is_committed() or self.is_full(builder)):
                if self.read_entries(builder.batch.last_seq, AHEAD_WAIT_SECONDS):
                    self._add_entries(builder, AHEAD_ENTRIES)
        except SpoolFailed:
            pass  # the entries that could be read are written first; collect_batch raises
        self.next_batch = builder

    def rebuild(self, items: Sequence[SpooledItem], *, deduplicate: bool = True) -> BatchBuilder:
        """Build a batch of entries that were in a batch before."""
        builder = self._begin_batch(items[0][0], self._cache if deduplicate else None)
        for item in items:
            builder.add(item)
        return builder

    def _begin_batch(self, first_seq: int, cache: RecentValueCache | None) -> BatchBuilder:
        builder = self._new_builder(first_seq=first_seq, cache=cache)
        builder.news_after_seq = self.decoded_upto
        return builder

    def confirm(self, not_current: Iterable[tuple[SeriesKey, int]]) -> None:
        """A batch was committed. ``not_current``: (series, ts) of its values that may not be current."""
        not_current = list(not_current)
        if not_current and self.next_batch is not None:
            self.invalidate()
        else:
            self._cache.discard(not_current)
        self._cache.rotate(boottime())

    def invalidate(self) -> None:
        """Clear the cache, and take the next batch apart: both rest on what may not be in the database."""
        self._cache.clear()
        if self.next_batch is not None:
            self._unbatched.extendleft(reversed(self.next_batch.items))
            self.next_batch = None

    def reset(self) -> None:
        """Forget every entry that was read: the position has changed, and reading starts from it."""
        self.invalidate()
        self._unbatched.clear()

    def measure_backlog(self) -> None:
        """Set ``status.oldest_us`` before a registration: that may fail for as long as the database is away."""
        if self._status.oldest_us is None and (entries := self._spool.read(self._spool.acked, max_entries=1)):
            self._status.oldest_us = recorded_us(entries[0][1])

    def update_oldest(self) -> None:
        """Set ``status.oldest_us`` after a commit."""
        ahead = self.next_batch.items if self.next_batch else ()
        oldest = next(chain(ahead, self._unbatched), None)
        self._status.oldest_us = oldest and recorded_us(oldest[1])

    def can_build_next(self, builder: BatchBuilder) -> bool:
        """Return whether the next batch can be built: there are entries, and memory for a second batch."""
        has_entries = bool(self._unbatched) or self._spool.synced > builder.batch.last_seq
        return has_entries and builder.units < 2 * self._policy.max_rows

    def is_full(self, builder: BatchBuilder) -> bool:
        return self._policy.full(rows=builder.units, size_bytes=builder.size_bytes)

    def read_entries(self, after_seq: int, max_wait_seconds: float, min_entries: int = 1) -> bool:
        """Return whether entries past ``after_seq`` were read, now or before.

        If the spool has none, wait for ``min_entries`` of them, for up to ``max_wait_seconds``. Raises SpoolFailed.
        """
        if not self._unbatched and self._spool.wait(after_seq, max_wait_seconds, min_entries):
            items = self._spool.read_items(after_seq, max_entries=self._policy.max_rows)
            if not _follow(after_seq, items) or not items:
                raise SpoolUnreadable(f"spool entries after {after_seq}: some are missing, the disk lost them")
            self._unbatched.extend(items)
        return bool(self._unbatched)

    def _wait_seconds(self, builder: BatchBuilder, idle_seconds: float) -> float:
        if self._is_draining():
            return 0.0
        age_seconds = time.monotonic() - self._started_at
        return self._policy.wait_seconds(rows=builder.units, age_seconds=age_seconds, idle_seconds=idle_seconds)

    def _add_entries(self, builder: BatchBuilder, limit: int) -> None:
        if not builder.units:
            self._started_at = time.monotonic()
        max_units, max_bytes = self._policy.max_rows, self._policy.max_bytes
        # As ``is_full``, without a call for each item.
        while limit > 0 and self._unbatched and builder.units < max_units and builder.size_bytes < max_bytes:
            seq, item = self._unbatched.popleft()
            if isinstance(item, FrameRun):
                added = builder.add_run(seq, item.part(0, limit), max_units, max_bytes)
                if added < len(item.texts):
                    self._unbatched.appendleft((seq + added, item.part(added)))
            else:
                builder.add((seq, item))
                added = 1
            limit -= added


def _follow(after_seq: int, items: Iterable[SpooledItem]) -> bool:
    """Return whether the entries have the seqs that follow, without a gap."""
    for seq, item in items:
        if seq != after_seq + 1:
            return False
        after_seq += count_entries(item)
    return True
