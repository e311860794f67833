"""From spool to database: read, decode, commit, acknowledge. Retries what may pass. Runs in a thread of its own.

While the database has a batch, in one more thread, the next one is read and decoded: it is begun in the belief that the
first will be committed as it is, and begun anew if not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeAlias, TypeVar

import tenacity

from ingestor.core.entries import Channel, Entry, Frame
from ingestor.core.threads import DaemonExecutor, WorkQueue
from ingestor.errors import BatchRejected, DatabaseUnavailable, FullBatchRequired, PositionConflict, SpoolFailed
from ingestor.pipeline.batch_builder import BatchBuilder, rejected_batch
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.clock_skew import ClockSkewMonitor, format_skew
from ingestor.pipeline.decoder import Decoder
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.spool.chunk_store import SpoolUnreadable
from ingestor.spool.spool import Spool
from ingestor.store.maintenance.retention import Retention, RetentionResult
from ingestor.store.write.batch import Batch, SampleRow, WriteResult
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo

IDLE_SECONDS = 1.0  # how often an idle writer comes round, to publish the heartbeat
BACKOFF_SECONDS = 15.0
UNKNOWN_FIELDS_TOLD = 100
AHEAD_ENTRIES = 100  # that are decoded between two looks whether the batch before is committed
HURRY_SECONDS = 0.5  # between tries while draining
PRUNE_PAUSE_SECONDS = 0.05  # between steps of retention where nothing is to be written: the disk has other users

T = TypeVar("T")
_Flight: TypeAlias = "Future[tuple[WriteResult, float]]"  # and how many seconds it took

log = logging.getLogger(__name__)


@dataclass(slots=True)
class WriterStatus:
    """What the writer has done; read by other threads, so every field is replaced whole."""

    position: int = 0
    batches: int = 0
    new: int = 0
    revised: int = 0
    duplicate: int = 0
    dead_at_decode: int = 0
    dead_at_insert: int = 0
    expired: int = 0
    database_up: bool = False
    error: str | None = None
    committed_at: float | None = None  # time.time()
    publish_skew_seconds: Mapping[str, float] = field(default_factory=dict)  # by feed; negative: behind our clock
    oldest_us: int | None = None  # receipt of the oldest entry that waits for its commit; None if none is known to


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
        on_decoded: Callable[[Mapping[Channel, int], int], None] = lambda _heard, _upto_seq: None,
        on_batch: Callable[[float], None] = lambda _seconds: None,
        on_rows: Callable[[Sequence[SampleRow]], None] = lambda _rows: None,
        on_outage: Callable[[str, float], None] = lambda _error, _delay_seconds: None,
        on_lost: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        """``prepare`` brings the schema up to date before the first write; it may raise DatabaseUnavailable.

        ``on_decoded`` is told before the write what live data came for, and up to which entry that is known.
        ``on_lost`` is told why the database lacks what was written.
        """
        self._spool = spool
        self._database = database
        self._decoder = decoder
        self._policy = policy
        self._instance = instance
        self._prepare = prepare
        self._keep_payloads = keep_payloads
        self._retention = retention
        self._on_decoded = on_decoded
        self._on_batch = on_batch
        self._on_rows = on_rows
        self._on_outage = on_outage
        self._on_lost = on_lost
        self._waiting: deque[Entry] = deque()  # read, not yet in a batch
        self._ahead: BatchBuilder | None = None  # the next batch, begun while the one before was written
        self._since = 0.0  # time.monotonic() when the batch in the making began
        self._committer = DaemonExecutor("commit")
        self._published_us = 0
        self._known = RecentValueCache()
        self._told: set[tuple[str, str]] = set()
        self._skews = ClockSkewMonitor()
        self._stop = threading.Event()
        self._draining = threading.Event()
        self._pruning = threading.Event()
        self._errands = WorkQueue()
        self.status = WriterStatus()

    # -- its life

    def run(self) -> None:
        """Write until ``stop``. Returns early only by an error that no retry can mend."""
        try:
            if not self._retry(self._begin):
                return
            while not self._stop.is_set():
                self.step()
                if self._draining.is_set() and self.drained:
                    return
        finally:
            self._errands.close()
            self._committer.close()

    def drain(self) -> None:
        """Write what is there without waiting for company, then return from ``run``."""
        self._draining.set()
        self._spool.wake()

    def stop(self) -> None:
        """Return from ``run`` after the transaction under way."""
        self._stop.set()
        self._spool.wake()

    def request_retention(self) -> None:
        """Let retention take what is too old, in small steps while no batch is due. Returns at once."""
        self._pruning.set()
        self._spool.wake()

    def run_in_writer(self, work: Callable[[int], T], after_seq: int = 0) -> Future[T]:
        """Have ``work`` done in the writer's thread, between batches, once all up to entry ``after_seq`` is committed.

        It is called with our instance's id, and must be short. Cancelled when the writer ends.
        """
        outcome = self._errands.submit(work, after_seq)
        self._spool.wake()
        return outcome

    @property
    def drained(self) -> bool:
        return self.status.position >= self._spool.synced

    # -- one round

    def step(self) -> None:
        """Gather a batch, write it, publish the heartbeat, run errands; unless the next batch is due, take a step of
        retention.
        """
        assembly = self._gather()
        self._on_decoded(assembly.heard, assembly.batch.last_seq)
        if assembly.entries and self._written(assembly):
            self._acknowledge()
            self._tell_unknown(assembly.unknown_fields)
            self._measure_skew(assembly.skews_us)
        self._retry(self._publish)
        self._errands.run(self._database.instance_id, self.status.position)
        if self._pruning.is_set() and not (self._hurried or self._full(assembly)):
            self._prune()

    def _gather(self) -> BatchBuilder:
        """Entries until the batch is due: full, or its oldest has waited long enough."""
        assembly, self._ahead = self._ahead or self._begun(self.status.position), None
        while not (self._full(assembly) or (assembly.units and self._hurried)):
            missing = self._policy.entries_to_full(rows=assembly.units, entries=len(assembly.entries))
            try:
                if not self._refill(assembly.batch.last_seq, self._patience(assembly), missing):
                    break
            except SpoolFailed:
                if not assembly.entries:
                    raise
                break  # what could be read is written first
            if not assembly.units:
                self.status.oldest_us = _received_us(self._waiting[0])
            self._take(assembly, len(self._waiting))
        return assembly

    def _begun(self, after: int) -> BatchBuilder:
        return BatchBuilder(after + 1, self._decoder, self._known, keep_payloads=self._keep_payloads)

    def _patience(self, assembly: BatchBuilder) -> float:
        if self._hurried:
            return 0.0
        age = time.monotonic() - self._since
        idle = PRUNE_PAUSE_SECONDS if self._pruning.is_set() else IDLE_SECONDS
        return self._policy.wait_seconds(rows=assembly.units, age_seconds=age, idle_seconds=idle)

    def _take(self, assembly: BatchBuilder, most: int) -> None:
        if not assembly.units:
            self._since = time.monotonic()
        rows, size_bytes, next_entry = self._policy.max_rows, self._policy.max_bytes, self._waiting.popleft
        for _ in range(min(most, len(self._waiting))):
            if assembly.units >= rows or assembly.size_bytes >= size_bytes:  # full; a call for each entry would cost
                return
            assembly.add(next_entry())

    def _full(self, assembly: BatchBuilder) -> bool:
        return self._policy.full(rows=assembly.units, size_bytes=assembly.size_bytes)

    @property
    def _hurried(self) -> bool:
        return self._stop.is_set() or self._draining.is_set()

    def _refill(self, after: int, patience_seconds: float, company: int = 1) -> bool:
        """Whether anything is waiting past entry ``after``. If not yet, wait for so much ``company``, or the time."""
        if not self._waiting and self._spool.wait(after, patience_seconds, company):
            entries = self._spool.read(after, max_entries=self._policy.max_rows)
            if [seq for seq, _ in entries] != list(range(after + 1, after + 1 + len(entries))) or not entries:
                raise SpoolUnreadable(f"spool entries after {after}: some are missing, the disk lost them")
            self._waiting.extend(entries)
        return bool(self._waiting)

    def _written(self, assembly: BatchBuilder) -> bool:
        """Commit it, and begin the next one meanwhile if there is one to begin. False: told to stop before."""
        batch, flights = assembly.batch, deque[_Flight]()
        more = bool(self._waiting) or self._spool.synced > batch.last_seq
        if more and assembly.units < 2 * self._policy.max_rows:  # there is no room for two of the largest frames
            flights.append(self._committer.submit(lambda: self._timed(batch)))
            flights[0].add_done_callback(lambda _: self._spool.wake())
            self._ahead = self._decoded_during(flights[0], batch.last_seq)
        # The first try is the one under way.
        return self._retry(lambda: self._write(assembly, flights.pop() if flights else None))

    def _decoded_during(self, flight: _Flight, after: int) -> BatchBuilder:
        ahead = self._begun(after)
        try:
            while not (flight.done() or self._full(ahead) or self._stop.is_set()):
                if self._refill(ahead.batch.last_seq, IDLE_SECONDS):
                    self._take(ahead, AHEAD_ENTRIES)
        except SpoolFailed:
            pass  # so will the next look; what could be read is written first
        return ahead

    def _timed(self, batch: Batch) -> tuple[WriteResult, float]:
        started = time.monotonic()
        return self._database.write(batch), time.monotonic() - started

    def _forget(self) -> None:
        """What was believed of the database is not sure: what was assembled in that belief is to be assembled anew."""
        self._known.clear()
        if self._ahead is not None:
            self._waiting.extendleft(reversed(self._ahead.entries))
            self._ahead = None

    def _write(self, assembly: BatchBuilder, flight: _Flight | None = None) -> None:
        try:
            self._commit(assembly.batch, flight)
        except FullBatchRequired:
            self._write(self._assembled(assembly.entries, None))
        except PositionConflict:
            self._begin()  # an earlier try did commit: go on from where it left the position
        except BatchRejected as refusal:
            self._halve(assembly.entries, str(refusal))

    def _halve(self, entries: list[Entry], refusal: str) -> None:
        """What the database refuses is no row, or it would stand alone by now: find the entry that it is in."""
        if len(entries) == 1:
            try:
                self._commit(rejected_batch(entries[0], refusal))
            except BatchRejected as again:
                raise DatabaseUnavailable(f"it refuses what is surely sound: {again}") from None
            return
        middle = len(entries) // 2
        for half in (entries[:middle], entries[middle:]):
            self._write(self._assembled(half, self._known))

    def _assembled(self, entries: Sequence[Entry], known: RecentValueCache | None) -> BatchBuilder:
        assembly = BatchBuilder(entries[0][0], self._decoder, known, keep_payloads=self._keep_payloads)
        for entry in entries:
            assembly.add(entry)
        return assembly

    def _commit(self, batch: Batch, flight: _Flight | None = None) -> None:
        try:
            written, seconds = flight.result() if flight else self._timed(batch)
        except BaseException:
            self._forget()
            raise
        if written.uncertain_keys and self._ahead is None:
            self._known.discard(written.uncertain_keys)
        elif written.uncertain_keys:
            self._forget()  # the batch ahead relies on it, and what that one said is in the memory as well
        self._known.rotate(time.monotonic())
        self._on_rows(batch.rows)
        self._count(batch, written, seconds)

    def _count(self, batch: Batch, written: WriteResult, seconds: float) -> None:
        status = self.status
        status.position = batch.last_seq
        status.batches += 1
        status.new += written.new
        status.revised += written.revised
        status.duplicate += written.duplicate
        status.dead_at_decode += len(batch.dead_letters)
        status.dead_at_insert += written.dead_rows + written.dead_frames - len(batch.dead_letters)
        status.expired += written.expired
        status.committed_at = time.time()
        self._on_batch(seconds)

    def _acknowledge(self) -> None:
        self._spool.ack(self.status.position)
        ahead = self._ahead.entries if self._ahead else ()
        oldest = next(chain(ahead, self._waiting), None)
        self.status.oldest_us = oldest and _received_us(oldest)

    def _tell_unknown(self, fields: set[tuple[str, str]]) -> None:
        for feed, name in fields - self._told:
            if len(self._told) < UNKNOWN_FIELDS_TOLD:
                log.warning("%s: the field %s is not in the documentation, and is not stored", feed, ascii(name))
                self._told.add((feed, name))

    def _measure_skew(self, measured_us: Mapping[str, int]) -> None:
        for feed, seconds in self._skews.update(measured_us):
            log.warning(
                "%s: the provider's publish clock is %s; published_at is kept as it comes, and orders nothing",
                feed,
                format_skew(seconds),
            )
        self.status.publish_skew_seconds = self._skews.seconds

    def _begin(self) -> None:
        """Introduce this spool to the database and take up the position that it has committed."""
        self._prepare()
        self._look_for_strangers()
        position = self._register()
        if not self._spool.first_seq() - 1 <= position <= self._spool.synced:
            # One of the two is an older copy: going on would leave a hole unseen, or take new entries for old ones.
            self._database.close_coverage_as_lost(time.time_ns() // 1000)
            reason = f"the database's position {position} does not fit the spool: one of them is an older copy"
            self._on_lost(reason)
            self._spool.reset_id()
            position = self._register()
        self.status.position = position
        self._forget()
        self._waiting.clear()
        self._spool.ack(self.status.position)

    def _look_for_strangers(self) -> None:
        """A spool that has forgotten entries wrote them to a database; one that never met it lacks them."""
        spool_id = self._spool.spool_id
        named_anew = spool_id != self._instance.spool_id  # then this was said
        if self._spool.first_seq() > 1 and not named_anew and not self._database.has_instance(spool_id):
            self._on_lost("the database does not know this spool, which had written to one before")

    def _register(self) -> int:
        instance = replace(self._instance, spool_id=self._spool.spool_id)
        return self._database.register(instance, self._spool.first_seq())

    def _publish(self) -> None:
        beat = self._spool.durable_heartbeat
        if beat and beat[1] <= self.status.position and beat[0] != self._published_us:
            self._database.publish_heartbeat(beat[0])
            self._published_us = beat[0]

    def _prune(self) -> None:
        step = self._prune_step()
        if step.deleted_samples:
            self._forget()
        if not step.has_more:
            self._pruning.clear()

    def _prune_step(self) -> RetentionResult:
        """What keeps retention from its work keeps nobody else from theirs: it is asked for again."""
        if self._retention is None:
            return RetentionResult()
        try:
            return self._retention.step(self._database.instance_id, time.time_ns() // 1000)
        except (DatabaseUnavailable, BatchRejected) as error:
            log.warning("what is older than database.retention could not be taken; it will be tried again: %s", error)
            return RetentionResult()

    # -- outages

    def _retry(self, attempt: Callable[[], None]) -> bool:
        """Try until it passes; False if told to stop meanwhile. Only DatabaseUnavailable is tried again."""
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(DatabaseUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.25, max=BACKOFF_SECONDS),
            stop=lambda _: self._stop.is_set(),
            sleep=self._pause,
            before_sleep=self._outage,
            reraise=True,
        )
        try:
            tries(attempt)
        except DatabaseUnavailable as error:
            self._note(error)
            return False
        self.status.database_up, self.status.error = True, None
        return True

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._stop.wait(min(left, HURRY_SECONDS)):
            if self._draining.is_set():
                return  # there is not much time left: no long breaks

    def _outage(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._note(error)
        self._on_outage(str(error), state.next_action.sleep if state.next_action else 0.0)

    def _note(self, error: BaseException | None) -> None:
        self.status.database_up = False
        self.status.error = str(error)


def _received_us(entry: Entry) -> int:
    what = entry[1]
    return what.received_us if isinstance(what, Frame) else what.at_us
