"""What is older than it is to be kept, taken in small steps: payloads, samples, and the journal.

The journal is folded rather than cut: of its batches there remains one row for each instance and UTC day, so that the
ledger stays without gaps and its sums true; of its coverage what ``folding`` leaves. Dead letters are kept. When there
is time for a step is for the writer to say; that one daemon at a time takes them is seen to here, by a lease.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import takewhile
from typing import Any, Protocol, TypeAlias

from sqlalchemy import Connection, Engine, Table, bindparam, delete, exists, select, update

from ingestor.config.model import RetentionConfig as Horizons
from ingestor.core.times import day_start_us, to_datetime, to_us
from ingestor.store import leases, schema
from ingestor.store.engine import transaction
from ingestor.store.maintenance import coverage_compaction

LEASE = "retention"
LEASE_TIME = timedelta(minutes=1)  # renewed with every step; after it another daemon may go on
STEP_ROWS = 1_000
FIRST_ROWS = 100  # a payload may have megabytes: begin carefully
STEP_SECONDS = 0.05
SERIES_PER_QUERY = 200
SAMPLES_PER_SERIES = 20  # taken at once at least: a statement for each series costs more than its rows
SHOWN = timedelta(days=1)  # of coverage, by instance, on the status page
MOST = 2**31 - 1  # that such a column holds


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """What a step has done."""

    deleted_samples: int = 0
    has_more: bool = False  # there is, or may be, more to delete


class Retention:
    """Takes what is too old, a step at a time. Not for two threads."""

    def __init__(self, engine: Engine, keep: Horizons) -> None:
        self._engine = engine
        self._keep = keep
        self._tasks: list[_Task] = []  # of the sweep under way
        self._rows = FIRST_ROWS
        self._folded_on: date | None = None  # coverage is read to its end once a day

    def step(self, instance_id: int, now_us: int) -> RetentionResult:
        """Take at most ``STEP_ROWS``, in about ``STEP_SECONDS``, in a transaction of its own.

        The first step of a sweep sets its horizons. Where another instance has the lease there is nothing to do.
        Raises DatabaseUnavailable, BatchRejected: then this step has changed nothing, and may be tried again.
        """
        started = time.monotonic()
        tasks, self._tasks = self._tasks, []  # a step that fails ends its sweep
        with transaction(self._engine) as connection:
            now = leases.acquire(connection, LEASE, instance_id, LEASE_TIME)
            if now is None:
                return RetentionResult()
            now = min(now, to_datetime(now_us))
            tasks = tasks or _sweep(connection, self._keep, now, self._folded_on)
            taken = _work(connection, tasks, self._rows, started + STEP_SECONDS)
        self._tasks = taken.rest
        if not taken.rest:
            self._folded_on = now.date()
        self._rows = next_step_rows(self._rows, time.monotonic() - started)
        return RetentionResult(taken.samples, bool(taken.rest))


def samples_cutoff(now: datetime, keep_seconds: float) -> datetime:
    """Since when samples are kept: of an hour or a day that lost some, the candle would be wrong."""
    return to_datetime(day_start_us(to_us(now) - round(keep_seconds * 1_000_000)))


def next_step_rows(rows: int, seconds: float) -> int:
    """How many rows the next step may take, where ``rows`` took so long."""
    return max(rows // 2, 1) if seconds > STEP_SECONDS else min(rows * 2, STEP_ROWS)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a task has done of what it was asked to, and what of it remains."""

    rows: int
    rest: list[_Task]
    samples: int = 0


class _Task(Protocol):
    def take(self, connection: Connection, rows: int) -> _Taken:
        """Take about so many rows at most."""


def _sweep(connection: Connection, keep: Horizons, now: datetime, folded_on: date | None) -> list[_Task]:
    """All that is to be looked at, of every instance: those that are no more have payloads as well."""
    instances = connection.execute(select(schema.instances.c.instance_id).order_by("instance_id")).scalars().all()
    tasks: list[_Task] = []
    if keep.payloads is not None:
        tasks += [_Payloads(one, now - timedelta(seconds=keep.payloads)) for one in instances]
    if keep.journal is not None:
        tasks += [_Journal(one, now - timedelta(seconds=keep.journal)) for one in instances]
    if keep.samples is not None:
        tasks.append(_Samples(samples_cutoff(now, keep.samples)))
    if keep.journal is not None and folded_on != now.date():
        tasks.append(_Coverage(now - max(timedelta(seconds=keep.journal), SHOWN)))
    return tasks


def _work(connection: Connection, tasks: list[_Task], rows: int, until: float) -> _Taken:
    """Task after task, until rows or time (``time.monotonic``) are used up."""
    done = samples = 0
    while tasks and done < rows and time.monotonic() < until:
        taken = tasks[0].take(connection, rows - done)
        tasks = taken.rest + tasks[1:]
        done += taken.rows
        samples += taken.samples
    return _Taken(done, tasks, samples)


@dataclass(frozen=True, slots=True)
class _Payloads:
    """The payloads of an instance, from its oldest on: no index on ``received_at`` is needed."""

    instance_id: int
    before: datetime
    after_seq: int = 0

    def take(self, connection: Connection, rows: int) -> _Taken:
        c = schema.payloads.c
        later = (c.instance_id == self.instance_id, c.seq > self.after_seq)
        page = connection.execute(select(c.seq, c.received_at).where(*later).order_by(c.seq).limit(rows)).all()
        # Up to the first that is younger, though older ones may follow: a retried letter has its old stamp.
        old = list(takewhile(lambda row: row.received_at < self.before, page))
        if not old:
            return _Taken(0, [])
        connection.execute(delete(schema.payloads).where(*later, c.seq <= old[-1].seq))
        return _Taken(len(old), [replace(self, after_seq=old[-1].seq)])


@dataclass(frozen=True, slots=True)
class _Journal:
    """The ledger of an instance, and with each of its rows the events that it counts: both go in one transaction."""

    instance_id: int
    before: datetime
    from_seq: int = 0

    def take(self, connection: Connection, rows: int) -> _Taken:
        c = schema.batches.c
        later = (c.instance_id == self.instance_id, c.first_seq >= self.from_seq)
        # One more than asked for: the first may be what the last page was folded to.
        query = select(schema.batches).where(*later).order_by(c.first_seq).limit(rows + 1)
        page = connection.execute(query).all()
        old = list(takewhile(lambda row: row.committed_at < self.before, page))
        if not old:
            return _Taken(0, [])
        self._forget_events(connection, old[0].first_seq, old[-1].last_seq)
        folded = group_by_day(old)
        for day in folded:
            self._replace(connection, day)
        whole_page = len(old) == rows + 1
        return _Taken(len(old), [replace(self, from_seq=folded[-1].first_seq)] if whole_page else [])

    def _forget_events(self, connection: Connection, first_seq: int, last_seq: int) -> None:
        c = schema.events.c
        gone = (c.instance_id == self.instance_id, c.seq.between(first_seq, last_seq))
        connection.execute(delete(schema.events).where(*gone))

    def _replace(self, connection: Connection, day: LedgerDay) -> None:
        if day.batches == 1:
            return
        c = schema.batches.c
        mine = c.instance_id == self.instance_id
        connection.execute(delete(schema.batches).where(mine, c.first_seq > day.first_seq, c.first_seq <= day.last_seq))
        sums = {"last_seq": day.last_seq, "committed_at": day.committed_at, **day.counts}
        connection.execute(update(schema.batches).where(mine, c.first_seq == day.first_seq).values(sums))


@dataclass(slots=True, kw_only=True)
class LedgerDay:
    """Neighbouring rows of the ledger, as the one that is to stand for them."""

    first_seq: int
    last_seq: int
    committed_at: datetime  # of the last of them
    counts: dict[str, int]
    batches: int = 1

    def add(self, row: _LedgerRow) -> bool:
        """Take in the row that follows, if it is of the same UTC day. A gap, or a sum too great, stays outside."""
        counts = {name: count + getattr(row, name) for name, count in self.counts.items()}
        neighbours = row.first_seq == self.last_seq + 1 and row.committed_at.date() == self.committed_at.date()
        if not neighbours or max(counts.values()) > MOST:
            return False
        self.last_seq, self.committed_at, self.counts = row.last_seq, row.committed_at, counts
        self.batches += 1
        return True


_LedgerRow: TypeAlias = Any  # a row of ``batches``


def group_by_day(rows: Iterable[_LedgerRow]) -> list[LedgerDay]:
    """Rows of one instance's ledger, in order, as days."""
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
    """The coverage of every subscription and instance."""

    before: datetime
    start: coverage_compaction.CoverageKey = coverage_compaction.START

    def take(self, connection: Connection, rows: int) -> _Taken:
        read, start = coverage_compaction.compact(connection, self.start, self.before, rows)
        return _Taken(read, [replace(self, start=start)] if start else [])


@dataclass(frozen=True, slots=True)
class _Samples:
    """Samples by their ``ts``, with their revisions, a few series at a time; the names of series are kept."""

    before: datetime
    after_series: int = 0

    def take(self, connection: Connection, rows: int) -> _Taken:
        n, s = schema.series.c, schema.samples.c
        has_old = exists().where(s.series_id == n.series_id, s.ts < self.before)
        query = select(n.series_id, has_old.label("old")).where(n.series_id > self.after_series)
        page = connection.execute(query.order_by(n.series_id).limit(SERIES_PER_QUERY)).all()
        if not page:
            return _Taken(0, [])
        old = [row.series_id for row in page if row.old]
        if not old:
            return _Taken(0, [replace(self, after_series=page[-1].series_id)])
        old = old[: max(rows // SAMPLES_PER_SERIES, 1)]
        taken = self._delete(connection, old, max(rows // len(old), 1))
        return _Taken(taken, [self], taken)  # the same again, until nothing of it is old

    def _delete(self, connection: Connection, series_ids: Sequence[int], each: int) -> int:
        """Take the ``each`` oldest of every series, revisions first: what is old is told by the samples."""
        s = schema.samples.c
        oldest = select(s.ts).where(s.series_id == bindparam("id_"), s.ts < self.before).order_by(s.ts).limit(each)
        names = [{"id_": series_id} for series_id in series_ids]
        deleted = [
            connection.execute(_of_series(table).where(table.c.ts.in_(oldest)), names).rowcount
            for table in (schema.sample_revisions, schema.samples)
        ]
        return deleted[-1]


def _of_series(table: Table) -> Any:
    return delete(table).where(table.c.series_id == bindparam("id_"))
