"""Delete expired rows in small steps: payloads, samples, and the journal (ledger, events and coverage).

The journal is compacted where deleting rows would leave gaps: the ledger keeps one row per instance and UTC day with
the sums of that day, and ``coverage_compaction`` merges coverage. Dead letters are kept. The writer decides when to run
a step. Each daemon deletes its own payloads, by its own config: one of two hosts may keep them. What the instances
share is left to one daemon at a time, by a lease, and with it the payloads of instances that are gone for good.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import accumulate, takewhile
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, bindparam, delete, exists, select, update

from ingestor.config.model import RetentionConfig
from ingestor.core.times import day_start_us, to_datetime, to_us
from ingestor.store import leases, schema
from ingestor.store.engine import insert_or_ignore, transaction
from ingestor.store.instances import forgotten_instances
from ingestor.store.maintenance import coverage_compaction

LEASE = "retention"
LEASE_TIME = timedelta(minutes=1)  # renewed by every step; after that another daemon may take over
STEP_ROWS = 1_000
FIRST_ROWS = 100  # of the first step: a payload may be several megabytes
STEP_SECONDS = 0.05
SERIES_PER_QUERY = 200
SAMPLES_PER_SERIES = 20  # deleted together at least: a statement per series costs more than its rows
STATUS_PAGE_TIME = timedelta(days=1)  # the status page shows coverage by instance
MAX_CLOCK_ERROR = timedelta(days=1)  # a row that is stamped later was stamped by a wrong clock
MAX_INTEGER = 2**31 - 1  # of the ledger's count columns

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """What a step has done."""

    deleted_samples: int = 0
    has_more: bool = False  # there is, or may be, more to delete


class Retention:
    """Deletes expired rows, one step at a time. Not thread-safe."""

    def __init__(self, engine: Engine, config: RetentionConfig) -> None:
        self._engine = engine
        self._config = config
        self._tasks: list[_Task] = []  # of the current sweep
        self._rows = FIRST_ROWS
        self._coverage_compacted_on: date | None = None  # compaction reads all coverage: once a day is enough

    def begin_sweep(self) -> None:
        """Start over: the sweep in progress is based on the content of a database that may have been replaced."""
        self._tasks, self._coverage_compacted_on = [], None

    def step(self, instance_id: int, now_us: int) -> RetentionResult:
        """Delete at most ``STEP_ROWS``, in about ``STEP_SECONDS``, in a transaction of its own.

        ``now_us``: a time that has certainly come (``ProvenTime``); the database's clock is used where it is earlier.
        The first step of a sweep computes what has expired. While another instance has the lease, deletes only payloads
        of this one. Raises DatabaseUnavailable, BatchRejected: this step has changed nothing then, and may be repeated.
        """
        started = time.monotonic()
        tasks, self._tasks = self._tasks, []  # a step that fails ends its sweep
        with transaction(self._engine) as connection:
            leased_at = leases.acquire(connection, LEASE, instance_id, LEASE_TIME)
            now = min(leased_at or leases.database_time(connection), to_datetime(now_us))
            tasks = tasks or [
                *_payload_tasks([instance_id], self._config, now),
                *_shared_tasks(connection, instance_id, self._config, now, self._coverage_compacted_on),
            ]
            if leased_at is None:
                tasks = [task for task in tasks if isinstance(task, _Payloads) and task.is_of(instance_id)]
            progress = _run(connection, tasks, self._rows, started + STEP_SECONDS)
        self._tasks = progress.remaining
        # A sweep that began without the lease has no such task, even if it ends with it.
        if any(isinstance(task, _Coverage) for task in tasks) and not progress.remaining:
            self._coverage_compacted_on = now.date()
        self._rows = next_step_rows(self._rows, time.monotonic() - started)
        return RetentionResult(progress.samples, bool(progress.remaining))


def samples_cutoff(now: datetime, keep_seconds: float) -> datetime:
    """Return since when samples are kept. Only whole days are deleted, so that candles do not lose some of theirs."""
    return to_datetime(day_start_us(to_us(now) - round(keep_seconds * 1_000_000)))


def next_step_rows(rows: int, seconds: float) -> int:
    """Return the row limit of the next step, given that a step with limit ``rows`` took ``seconds``."""
    return max(rows // 2, 1) if seconds > STEP_SECONDS else min(rows * 2, STEP_ROWS)


@dataclass(frozen=True, slots=True)
class _Progress:
    """What a task has processed, and the tasks that remain of it."""

    rows: int
    remaining: list[_Task]
    samples: int = 0  # deleted


class _Task(Protocol):
    def run(self, connection: Connection, rows: int) -> _Progress:
        """Process about ``rows`` rows at most."""


def _payload_tasks(instance_ids: Iterable[int], config: RetentionConfig, now: datetime) -> list[_Task]:
    if config.payloads is None:
        return []
    return [_Payloads(expiry) for expiry in _expiries(instance_ids, config.payloads, now)]


def _shared_tasks(
    connection: Connection,
    instance_id: int,
    config: RetentionConfig,
    now: datetime,
    coverage_compacted_on: date | None,
) -> list[_Task]:
    """Return the tasks that one daemon does for all instances, because those that no longer run have rows as well."""
    tasks = _payload_tasks(forgotten_instances(connection, now), config, now)
    if config.journal is not None:
        query = select(schema.instances.c.instance_id).order_by("instance_id")
        every_instance = connection.execute(query).scalars().all()
        tasks += [_Ledger(expiry) for expiry in _expiries(every_instance, config.journal, now)]
    if config.samples is not None:
        tasks.append(_Samples(instance_id, samples_cutoff(now, config.samples)))
    if config.journal is not None and coverage_compacted_on != now.date():
        tasks.append(_Coverage(now - max(timedelta(seconds=config.journal), STATUS_PAGE_TIME)))
    return tasks


def _expiries(instance_ids: Iterable[int], keep_seconds: float, now: datetime) -> list[_Expiry]:
    before, ahead = now - timedelta(seconds=keep_seconds), now + MAX_CLOCK_ERROR
    return [_Expiry(instance_id=instance_id, before=before, ahead=ahead) for instance_id in instance_ids]


def _run(connection: Connection, tasks: list[_Task], rows: int, deadline: float) -> _Progress:
    """Run one task after the other until ``rows`` are processed or ``deadline`` (``time.monotonic``) has passed."""
    processed = samples = 0
    while tasks and processed < rows and time.monotonic() < deadline:
        progress = tasks[0].run(connection, rows - processed)
        tasks = progress.remaining + tasks[1:]
        processed += progress.rows
        samples += progress.samples
    return _Progress(processed, tasks, samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expiry:
    """Which rows of an instance expired: those stamped before a time, and those that were written before such rows.

    A clock that ran ahead has stamped rows with times of the future. They must not hold up retention until then.
    """

    instance_id: int
    before: datetime
    ahead: datetime  # a row with a later stamp was stamped by a wrong clock

    def take(self, connection: Connection, page: Sequence[Row], stamp: str, seq: str) -> list[Row]:
        """Return the expired rows at the beginning of a page, which is in the order of writing."""

        def is_old(row: Row) -> bool:
            return bool(getattr(row, stamp) < self.before)

        def is_ahead(row: Row) -> bool:
            return bool(getattr(row, stamp) > self.ahead)

        expired = list(takewhile(lambda row: is_old(row) or is_ahead(row), page))
        last_ahead = next((getattr(row, seq) for row in reversed(expired) if is_ahead(row)), None)
        if last_ahead is None or self._next_batch_expired(connection, last_ahead):
            return expired
        return list(takewhile(is_old, page))

    def _next_batch_expired(self, connection: Connection, after_seq: int) -> bool:
        """Whether the next batch whose stamp is no time of the future expired. Unlike payloads, no batch is retried."""
        c = schema.batches.c
        later = (c.instance_id == self.instance_id, c.first_seq > after_seq, c.committed_at <= self.ahead)
        query = select(c.committed_at).where(*later).order_by(c.first_seq).limit(1)
        committed_at = connection.execute(query).scalar()
        return committed_at is not None and committed_at < self.before


@dataclass(frozen=True, slots=True)
class _Payloads:
    """Deletes the payloads of an instance, in the order of seq: no index on ``received_at`` is needed.

    A block of payloads is deleted once all of them expired.
    """

    expiry: _Expiry
    after_seq: int = 0

    def is_of(self, instance_id: int) -> bool:
        return self.expiry.instance_id == instance_id

    def run(self, connection: Connection, rows: int) -> _Progress:
        c = schema.payload_blocks.c
        later = (c.instance_id == self.expiry.instance_id, c.first_seq > self.after_seq)
        columns = (c.first_seq, c.last_seq, c.last_received_at, c.frame_count)
        page = connection.execute(select(*columns).where(*later).order_by(c.first_seq).limit(rows)).all()
        # Stop at the first newer payload. A retried dead letter behind it has an older timestamp, and is deleted later.
        expired = self.expiry.take(connection, _limit_frames(page, rows), "last_received_at", "last_seq")
        if not expired:
            return _Progress(0, [])
        last = expired[-1].first_seq
        connection.execute(delete(schema.payload_blocks).where(*later, c.first_seq <= last))
        return _Progress(sum(block.frame_count for block in expired), [replace(self, after_seq=last)])


def _limit_frames(page: Sequence[Any], limit: int) -> Sequence[Any]:
    """Return the first blocks of a page, with ``limit`` frames at most; but one block at least."""
    totals = accumulate(block.frame_count for block in page)
    return page[: max(sum(total <= limit for total in totals), 1)]


@dataclass(frozen=True, slots=True)
class _Ledger:
    """Compacts the ledger of an instance and deletes the events that the rows count, in one transaction."""

    expiry: _Expiry
    from_seq: int = 0

    def run(self, connection: Connection, rows: int) -> _Progress:
        c = schema.batches.c
        later = (c.instance_id == self.expiry.instance_id, c.first_seq >= self.from_seq)
        # One more row than requested: the first one may be the result of compacting the previous page.
        query = select(schema.batches).where(*later).order_by(c.first_seq).limit(rows + 1)
        page = connection.execute(query).all()
        expired = self.expiry.take(connection, page, "committed_at", "last_seq")
        if not expired:
            return _Progress(0, [])
        e = schema.events.c
        own = e.instance_id == self.expiry.instance_id
        connection.execute(delete(schema.events).where(own, e.seq.between(expired[0].first_seq, expired[-1].last_seq)))
        days = group_by_day(expired)
        for day in days:
            self._replace(connection, day)
        whole_page = len(expired) == rows + 1
        return _Progress(len(expired), [replace(self, from_seq=days[-1].first_seq)] if whole_page else [])

    def _replace(self, connection: Connection, day: LedgerDay) -> None:
        if day.batches == 1:
            return
        c = schema.batches.c
        own = c.instance_id == self.expiry.instance_id
        connection.execute(delete(schema.batches).where(own, c.first_seq > day.first_seq, c.first_seq <= day.last_seq))
        sums = {"last_seq": day.last_seq, "committed_at": day.committed_at, **day.counts}
        sums |= dict.fromkeys(schema.LEDGER_RANGES)  # whoever has not read them for so long reads all samples
        connection.execute(update(schema.batches).where(own, c.first_seq == day.first_seq).values(sums))


@dataclass(slots=True, kw_only=True)
class LedgerDay:
    """Adjacent ledger rows of one UTC day, to be replaced by one row."""

    first_seq: int
    last_seq: int
    committed_at: datetime  # of the last batch
    counts: dict[str, int]
    batches: int = 1

    def add(self, row: Any) -> bool:
        """Add the next row. Returns False if it is of another day, after a gap, or a sum would be too large."""
        counts = {name: count + getattr(row, name) for name, count in self.counts.items()}
        adjacent = row.first_seq == self.last_seq + 1 and row.committed_at.date() == self.committed_at.date()
        if not adjacent or max(counts.values()) > MAX_INTEGER:
            return False
        self.last_seq, self.committed_at, self.counts = row.last_seq, row.committed_at, counts
        self.batches += 1
        return True


def group_by_day(rows: Iterable[Any]) -> list[LedgerDay]:
    """Group one instance's ledger rows, which are in order, into days."""
    days: list[LedgerDay] = []
    for row in rows:
        if not (days and days[-1].add(row)):
            counts = {name: getattr(row, name) for name in schema.LEDGER_COUNTS}
            days.append(
                LedgerDay(first_seq=row.first_seq, last_seq=row.last_seq, committed_at=row.committed_at, counts=counts)
            )
    return days


@dataclass(frozen=True, slots=True)
class _Coverage:
    """Compacts the coverage of all subscriptions and instances."""

    before: datetime
    start: coverage_compaction.CoverageKey = coverage_compaction.START

    def run(self, connection: Connection, rows: int) -> _Progress:
        read, start = coverage_compaction.compact(connection, self.start, self.before, rows)
        return _Progress(read, [replace(self, start=start)] if start else [])


@dataclass(frozen=True, slots=True)
class _Samples:
    """Deletes samples by ``ts`` with their revisions, a few series at a time. Keeps the rows of ``series``.

    Table ``deletions`` tells readers what is missing since: its row is committed with the first deletion.
    """

    instance_id: int
    before: datetime
    after_series: int = 0

    def run(self, connection: Connection, rows: int) -> _Progress:
        n, s = schema.series.c, schema.samples.c
        has_expired = exists().where(s.series_id == n.series_id, s.ts < self.before)
        query = select(n.series_id, has_expired.label("has_expired")).where(n.series_id > self.after_series)
        page = connection.execute(query.order_by(n.series_id).limit(SERIES_PER_QUERY)).all()
        if not page:
            return _Progress(0, [])
        expired = [row.series_id for row in page if row.has_expired]
        if not expired:
            return _Progress(0, [replace(self, after_series=page[-1].series_id)])
        expired = expired[: max(rows // SAMPLES_PER_SERIES, 1)]
        self._record(connection)
        deleted = self._delete(connection, expired, max(rows // len(expired), 1))
        return _Progress(deleted, [self], deleted)  # read the same page again, until none of it has expired samples

    def _record(self, connection: Connection) -> None:
        row = {"before": self.before, "deleted_at": leases.database_time(connection), "instance_id": self.instance_id}
        connection.execute(insert_or_ignore(connection, schema.deletions).values(row))

    def _delete(self, connection: Connection, series_ids: Sequence[int], per_series: int) -> int:
        """Delete the ``per_series`` oldest samples of each series. Revisions first: the samples say what expired."""
        s = schema.samples.c
        expired = select(s.ts).where(s.series_id == bindparam("id_"), s.ts < self.before)
        oldest = expired.order_by(s.ts).limit(per_series)
        ids = [{"id_": series_id} for series_id in series_ids]
        for table in (schema.sample_revisions, schema.samples):
            c = table.c
            query = delete(table).where(c.series_id == bindparam("id_"), c.ts.in_(oldest))
            deleted = connection.execute(query, ids).rowcount
        return deleted
