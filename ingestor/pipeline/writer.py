"""From spool to database: collect a batch, commit it, acknowledge it. Runs in a thread of its own.

While a second thread commits batch N, this thread builds batch N+1, assuming that N commits unchanged. If it does not,
N+1 is discarded and built again; `read_ahead` has the rule.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from ingestor.core.entries import BACKFILL_REQUESTED, Channel
from ingestor.core.threads import WorkQueue
from ingestor.errors import BatchRejected, DatabaseUnavailable, PositionConflict
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.clock_skew import ClockSkewMonitor, format_skew
from ingestor.pipeline.committer import Committer, DatabaseRetry
from ingestor.pipeline.decoder import Decoder
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.read_ahead import ReadAhead
from ingestor.pipeline.registrar import Registrar, Rewind
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.spool.spool import Spool
from ingestor.store.maintenance.retention import Retention, RetentionResult
from ingestor.store.write.batch import Batch, SampleRow
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo

IDLE_SECONDS = 1.0  # an idle writer publishes the heartbeat this often
RETENTION_PAUSE_SECONDS = 0.05  # between steps of retention where nothing is to be written: the disk has other users
MAX_UNKNOWN_FIELDS = 100  # that are logged: an envelope may name anything

T = TypeVar("T")

log = logging.getLogger(__name__)


class Writer:
    """Moves entries into the database until stopped. Acknowledges only what the database has committed."""

    def __init__(
        self,
        spool: Spool,
        database: BatchWriter,
        decoder: Decoder,
        policy: BatchPolicy,
        instance: InstanceInfo,
        *,
        prepare: Callable[[], None],
        keep_payloads: bool = True,
        retention: Retention | None = None,
        on_decoded: Callable[[Mapping[Channel, int], int], None] = lambda _received_us, _upto_seq: None,
        on_batch: Callable[[float], None] = lambda _seconds: None,
        on_rows: Callable[[Sequence[SampleRow]], None] = lambda _rows: None,
        on_outage: Callable[[str, float], None] = lambda _error, _delay_seconds: None,
        on_lost: Callable[[str, int | None], None] = lambda _reason, _since_us: None,
        on_other_run: Callable[[str], None] = lambda _reason: None,
        on_new_instance: Callable[[int | None], None] = lambda _complete_since_us: None,
        on_rewound: Callable[[Rewind], None] = lambda _rewind: None,
        repeat_backfill: Callable[[str], None] = lambda _detail: None,
        cache: RecentValueCache | None = None,
        new_builder: Callable[..., BatchBuilder] = BatchBuilder,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """``prepare`` brings the schema up to date before the first write; it may raise DatabaseUnavailable.

        ``on_decoded`` receives when live data came for which channel, and the last entry decoded: each entry once.
        ``Registrar`` describes the four hooks after ``on_outage``. ``repeat_backfill`` receives the detail of the fact
        that a backfill was requested, if the database may have lost it. The last three options are for tests.
        """
        self.status = WriterStatus()
        self.registrations = 0  # ids that were read before the last one may be others' ids now
        self._spool = spool
        self._database = database
        self._registrar = Registrar(spool, database, instance, on_lost, on_other_run, on_new_instance, on_rewound)
        self._prepare = prepare
        self._retention = retention
        self._on_decoded = on_decoded
        self._repeat_backfill = repeat_backfill
        self._stop, self._draining, self._retention_requested = (threading.Event() for _ in range(3))
        self._retry = DatabaseRetry(self.status, self._stop, self._draining, on_outage, sleep).run
        build = partial(new_builder, decoder=decoder, keep_payloads=keep_payloads)
        self.read_ahead = ReadAhead(spool, policy, build, cache or RecentValueCache(), self.status, self._is_draining)
        self._committer = Committer(database, self.read_ahead, self.status, on_rows, on_batch)
        self._work = WorkQueue()
        self._skews = ClockSkewMonitor()
        self._logged_fields: set[tuple[str, str]] = set()
        self._published_us, self._published_over = 0, 0  # the last heartbeat, and ``registrations`` at that time
        self._logged_waiting = False

    # -- life cycle, from any thread

    def run(self) -> None:
        """Write until ``stop``. Raises what no retry can repair."""
        try:
            if not self._retry(self.register):
                return
            while not self._stop.is_set():
                self.step()
                if self._draining.is_set() and self.drained:
                    return
        finally:
            self._work.close()
            self._committer.close()

    def drain(self) -> None:
        """Write what is in the spool without waiting for full batches, then return from ``run``."""
        self._draining.set()
        self._spool.wake()

    def stop(self) -> None:
        """Return from ``run`` after the transaction in progress."""
        self._stop.set()
        self._spool.wake()

    def request_retention(self) -> None:
        """Run retention in small steps while no full batch is due. Returns at once."""
        self._retention_requested.set()
        self._spool.wake()

    def run_in_writer(self, work: Callable[[int], T], after_seq: int = 0) -> Future[T]:
        """Run ``work`` in the writer's thread, between batches, once every entry up to ``after_seq`` is committed.

        It is called with the instance id, and must be short. Cancelled when the writer ends.
        """
        future = self._work.submit(work, after_seq)
        self._spool.wake()
        return future

    def note_slow_commit(self, waiting: str | None) -> None:
        """Take the database for unavailable while a COMMIT waits; None: it has ended, and its outcome decides."""
        if waiting:
            self.status.database_up, self.status.error = False, waiting

    @property
    def drained(self) -> bool:
        """Whether everything that is synced is committed."""
        return self.status.position >= self._spool.synced

    @property
    def retention_pending(self) -> bool:
        return self._retention_requested.is_set()

    def _is_draining(self) -> bool:
        return self._stop.is_set() or self._draining.is_set()

    # -- one round

    def step(self) -> None:
        """Collect a batch, write and acknowledge it, publish the heartbeat, run what was submitted.

        Then a step of retention if one is requested, unless the next batch is due.
        """
        idle_seconds = RETENTION_PAUSE_SECONDS if self.retention_pending else IDLE_SECONDS
        builder = self.read_ahead.collect_batch(self.status.position, idle_seconds)
        self._report_decoded(builder)
        if builder.items and self._repeat_backfills(builder.batch) and self._write_batch(builder):
            self._spool.ack(self.status.position)
            self._note_rewound()
            self.read_ahead.update_oldest()
            self._log_unknown_fields(builder.unknown_fields)
            self._check_clock_skew(builder.skews_us)
        self._retry(self._publish_heartbeat)
        self._work.run(self._database.instance_id, self.status.position)
        if self.retention_pending and not (self._is_draining() or self.read_ahead.is_full(builder)):
            self._run_retention_step()

    def _report_decoded(self, builder: BatchBuilder) -> None:
        upto = self.read_ahead.decoded_upto = max(self.read_ahead.decoded_upto, builder.batch.last_seq)
        self._on_decoded(builder.last_received_us, upto)

    def _repeat_backfills(self, batch: Batch) -> bool:
        """Request what was requested since the time that the database is back at. Returns False if stopped before.

        Before the position passes the request, so that a kill in between does not lose it again.
        """
        lost = [event for event in batch.events if event.kind == BACKFILL_REQUESTED]
        lost = [event for event in lost if event.seq <= self.status.rewound_to]
        return all(self._retry(partial(self._repeat_backfill, event.detail)) for event in lost)

    def _write_batch(self, builder: BatchBuilder) -> bool:
        """Commit a batch, and build the next one meanwhile if there are entries. Returns False if stopped before."""
        last_seq = builder.batch.last_seq
        if self.read_ahead.can_build_next(builder):
            is_committed = self._committer.start(builder.batch, when_done=self._spool.wake)
            self.read_ahead.build_next(last_seq, lambda: is_committed() or self._stop.is_set())
        return self._retry(partial(self._commit, builder))

    def _commit(self, builder: BatchBuilder) -> None:
        try:
            self._committer.commit(builder)
        except PositionConflict:
            # An earlier attempt did commit, or this is another database now: continue from its position.
            self.register()

    def _publish_heartbeat(self) -> None:
        heartbeat = self._spool.durable_heartbeat
        if heartbeat and heartbeat.seq <= self.status.position and not self._is_published(heartbeat.at_us):
            try:
                self._database.publish_heartbeat(heartbeat.at_us, heartbeat.heard_us)
            except PositionConflict:
                self.register()  # the next step publishes it, if everything before it is committed there
            else:
                self._published_us, self._published_over = heartbeat.at_us, self.registrations

    def _is_published(self, at_us: int) -> bool:
        return at_us == self._published_us and self._published_over == self.registrations

    def _log_unknown_fields(self, fields: set[tuple[str, str]]) -> None:
        for feed, name in fields - self._logged_fields:
            if len(self._logged_fields) < MAX_UNKNOWN_FIELDS:
                log.warning("%s: field %s is not documented, its values are not stored", feed, ascii(name))
                self._logged_fields.add((feed, name))

    def _check_clock_skew(self, measured_us: Mapping[str, int]) -> None:
        for feed, seconds in self._skews.update(measured_us):
            log.warning(
                "%s: the provider's publish clock is %s; published_at is stored as received and orders nothing",
                feed,
                format_skew(seconds),
            )
        self.status.publish_skew_seconds = self._skews.seconds

    # -- registration

    def register(self) -> None:
        """Become the run that writes as this spool's instance, and continue from the position that it has committed."""
        self.read_ahead.measure_backlog()
        self._prepare()
        self.status.position = self._registrar.register(self._published_us or None)
        self.status.server = self._database.server_address
        self.registrations += 1
        self.read_ahead.reset()
        self.read_ahead.update_oldest()
        self._spool.ack(self.status.position)
        self._note_rewound()
        self.read_ahead.measure_backlog()
        if self._retention:
            self._retention.begin_sweep()

    def _note_rewound(self) -> None:
        """Set ``status.rewound_to`` while entries are written that were written before."""
        highest = self._spool.highest_acked
        self.status.rewound_to = highest if highest > self.status.position else 0

    # -- retention

    def _run_retention_step(self) -> None:
        result = self._try_retention_step()
        if result.deleted_samples:
            self.read_ahead.invalidate()
        if not result.has_more:
            self._retention_requested.clear()

    def _try_retention_step(self) -> RetentionResult:
        """A failed retention step must not stop the writer: log it, the next sweep retries."""
        now_us = self._database.proven_time.now_us()
        if now_us is None and not self._logged_waiting:
            log.info("retention waits until a row of the provider shows that our clock is not ahead")
            self._logged_waiting = True
        if now_us is None or self._retention is None:
            return RetentionResult()
        try:
            return self._retention.step(self._database.instance_id, now_us)
        except (DatabaseUnavailable, BatchRejected) as error:
            log.warning("retention step failed, the next sweep will retry: %s", error)
            return RetentionResult()
