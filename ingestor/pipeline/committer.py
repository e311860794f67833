"""Commit batches, and retry during an outage.

What the database rejects is isolated, down to a single entry, so that all others are committed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeAlias

from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import boottime
from ingestor.core.entries import Entry, Fact, split_into_entries
from ingestor.core.outage import Outage
from ingestor.core.threads import DaemonExecutor
from ingestor.errors import BatchRejected, DatabaseUnavailable, DatabaseUnsupported, FullBatchRequired
from ingestor.pipeline.batch_builder import BatchBuilder, fact_in_ascii, rejected_batch
from ingestor.pipeline.read_ahead import ReadAhead
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.store.write.batch import Batch, SampleRow, WriteResult
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.bisection import bisect_rejected

# A promoted standby is found within the cap, and the time that an attempt takes; see docs/high-availability.md.
BACKOFF = Backoff(first_seconds=0.25, cap_seconds=5.0)
DRAIN_RETRY_SECONDS = 0.5  # between two attempts while draining: there is not much time left

_Outcome: TypeAlias = tuple[WriteResult, float]  # and the seconds that the transaction took

log = logging.getLogger(__name__)


class Committer:
    """Commits one batch at a time. ``start`` does it in a thread of its own, so that the next batch can be built."""

    def __init__(
        self,
        database: BatchWriter,
        read_ahead: ReadAhead,
        status: WriterStatus,
        on_rows: Callable[[Sequence[SampleRow]], None],
        on_batch: Callable[[float], None],
    ) -> None:
        self._database = database
        self._read_ahead = read_ahead
        self._status = status
        self._on_rows = on_rows
        self._reported_upto = 0  # ``on_rows`` gets the rows of each entry once
        self._on_batch = on_batch
        self._executor = DaemonExecutor("commit")
        self._started: tuple[Batch, Future[_Outcome]] | None = None  # until ``commit`` takes its outcome

    def start(self, batch: Batch, when_done: Callable[[], None]) -> Callable[[], bool]:
        """Begin to commit in the other thread, and return a function that returns whether it has ended.

        ``commit`` must follow. ``when_done`` is called in the other thread.
        """
        future = self._executor.submit(lambda: self._write(batch))
        future.add_done_callback(lambda _: when_done())
        self._started = batch, future
        return future.done

    def commit(self, builder: BatchBuilder) -> None:
        """Commit a batch, or wait for the outcome if it was started. Raises DatabaseUnavailable, PositionConflict.

        After either error some of its first entries may be committed. A repeated call then raises PositionConflict.
        """
        try:
            self._commit_items(builder)
        except BatchRejected:
            entries = list(split_into_entries(builder.items))
            bisect_rejected(entries, lambda part: self._commit_items(self._read_ahead.rebuild(part)), self._reject)

    def close(self) -> None:
        self._executor.close()

    def _commit_items(self, builder: BatchBuilder) -> None:
        try:
            self._commit_batch(builder.batch)
        except FullBatchRequired:
            self._commit_batch(self._read_ahead.rebuild(builder.items, deduplicate=False).batch)

    def _reject(self, entry: Entry, rejection: BatchRejected) -> None:
        """Make one entry a dead letter: the database rejects it, though its samples were isolated already."""
        if self._commit_in_ascii(entry):
            return
        try:
            self._commit_batch(rejected_batch(entry, str(rejection)))
        except BatchRejected as error:
            # Plain ASCII that fits every column: it is not the entry. A database that is unwell gets no dead letters.
            message = f"the database rejects even a plain-ASCII dead letter, retrying: {error}"
            raise DatabaseUnavailable(message) from None

    def _commit_in_ascii(self, entry: Entry) -> bool:
        """Commit a fact with its texts in ASCII: a character that the database lacks must not cost a transition."""
        seq, item = entry
        if not isinstance(item, Fact):
            return False
        try:
            self._commit_batch(self._read_ahead.rebuild([(seq, fact_in_ascii(item))]).batch)
        except BatchRejected:
            return False
        return True

    def _commit_batch(self, batch: Batch) -> None:
        try:
            result, seconds = self._outcome(batch)
        except BaseException:
            self._read_ahead.invalidate()
            raise
        self._read_ahead.confirm(result.uncertain_keys)
        self._report_rows(batch)
        self._count(batch, result)
        self._on_batch(seconds)

    def _report_rows(self, batch: Batch) -> None:
        """Report the rows, but for those that were reported before the database went back: they are old."""
        rows, upto = batch.rows, self._reported_upto
        self._on_rows(rows if batch.first_seq > upto else [row for row in rows if row.seq > upto])
        self._reported_upto = max(upto, batch.last_seq)

    def _outcome(self, batch: Batch) -> _Outcome:
        started, self._started = self._started, None
        return started[1].result() if started and started[0] is batch else self._write(batch)

    def _write(self, batch: Batch) -> _Outcome:
        started = time.monotonic()
        return self._database.write(batch), time.monotonic() - started

    def _count(self, batch: Batch, result: WriteResult) -> None:
        status = self._status
        status.position = batch.last_seq
        status.batches += 1
        status.new += result.new
        status.revised += result.revised
        status.duplicate += result.duplicate
        status.dead_at_decode += len(batch.dead_letters)
        status.dead_at_insert += result.dead_rows + result.dead_frames - len(batch.dead_letters)
        status.expired += result.expired
        status.committed_at = time.time()


class DatabaseRetry:
    """Calls again, after a backoff, what raises DatabaseUnavailable. Other errors are raised at once."""

    def __init__(
        self,
        status: WriterStatus,
        stop: threading.Event,
        draining: threading.Event,
        on_outage: Callable[[str, float], None],
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """``on_outage`` receives the error and the delay in seconds, when an ``Outage`` is to be reported.

        ``sleep`` replaces the wait between two attempts, which ends early when ``stop`` or ``draining`` is set.
        """
        self._status = status
        self._stop = stop
        self._draining = draining
        self._on_outage = on_outage
        self._outage = Outage()
        self._is_first_attempt = True
        self._sleep = sleep or self._wait

    def run(self, attempt: Callable[[], None]) -> bool:
        """Call ``attempt`` until it succeeds. Returns False if it failed and ``stop`` is set.

        Raises DatabaseUnsupported at the first attempt only. Later it is retried like any failure: the daemon has begun
        to receive, and what it receives is safe in the spool.
        """
        while True:
            is_first, self._is_first_attempt = self._is_first_attempt, False
            try:
                attempt()
            except DatabaseUnavailable as error:
                self._status.database_up, self._status.error = False, str(error)
                if self._stop.is_set():
                    return False
                if isinstance(error, DatabaseUnsupported) and is_first:
                    raise
                self._sleep(self._note_failure(str(error)))
            else:
                self._status.database_up, self._status.error, self._status.failed_attempts = True, None, 0
                if ended := self._outage.end(boottime()):
                    log.info("the database is available again, writing what is in the spool", extra=ended)
                return True

    def _note_failure(self, error: str) -> float:
        """Count a failed attempt and report it if it is to be. Return the seconds until the next one."""
        now = boottime()
        is_news = self._outage.note_failure(error, now)
        delay_seconds = BACKOFF.full_jitter(self._outage.attempts, chance())
        self._status.failed_attempts, self._status.retry_boottime = self._outage.attempts, now + delay_seconds
        if is_news:
            self._on_outage(error, delay_seconds)
        return delay_seconds

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._stop.wait(min(left, DRAIN_RETRY_SECONDS)):
            if self._draining.is_set():
                return
