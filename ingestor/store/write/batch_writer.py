"""The idempotent write: one batch, one transaction, however often it is tried.

The first statement of a batch moves the position by compare-and-set. So a batch that an earlier attempt committed,
perhaps late and unnoticed, changes nothing. The id of the run is compared too: another run may be at the same position.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, bindparam, delete, insert, select, update

from ingestor.core.clock import ProvenTime
from ingestor.core.entries import SeriesKey
from ingestor.core.times import day_start_us, to_datetime, to_us
from ingestor.errors import BatchRejected, DatabaseUnavailable, FullBatchRequired, PositionConflict
from ingestor.store import leases, schema
from ingestor.store.engine import insert_or_ignore, transaction, translate_errors
from ingestor.store.server_identity import ServerIdentity, describe_replaced, read_server_identity, server_address
from ingestor.store.write import coverage_intervals, postgres_sql, sqlite_sql, ts_ranges
from ingestor.store.write.batch import (
    Batch,
    DeadLetter,
    Origin,
    RetriedLetter,
    SubscriptionRow,
    Transition,
    WriteResult,
)
from ingestor.store.write.bisection import bisect_rejected
from ingestor.store.write.copy_policy import CopyPolicy
from ingestor.store.write.interning import InternTable
from ingestor.store.write.registration import InstanceInfo, LostSpan, Ownership, Registration, SpoolExtent, claim
from ingestor.store.write.sample_writer import InsertCounts, InsertMethod, SampleInsert, dead_letter_of

PROVING_ROWS = 100  # the last rows of a batch, whose ts prove what time it is
_NEW_SPOOL = SpoolExtent(first_seq=1)
INTERNED_NAMES = 200_000  # that are cached, of series and of subscriptions each
# Every batch executes these two: made, compiled and executed by SQLAlchemy, half as much again for a batch of 100 rows.
_ADVANCE = "UPDATE instances SET position = %s WHERE instance_id = %s AND run_id = %s AND position BETWEEN %s AND %s"
_LEDGER_COLUMNS = ("instance_id", "first_seq", "last_seq", "committed_at", *schema.LEDGER_COUNTS, *schema.LEDGER_RANGES)
_LEDGER_VALUES = ", ".join(["%s"] * len(_LEDGER_COLUMNS))
_INSERT_LEDGER = f"INSERT INTO batches ({', '.join(_LEDGER_COLUMNS)}) VALUES ({_LEDGER_VALUES})"  # noqa: S608 -- constants


class _InternedSeries(NamedTuple):
    ids: dict[SeriesKey, int]
    rejections: dict[SeriesKey, str]  # names that the database rejects (its encoding lacks a character), and why


class BatchWriter:
    """Writes the batches of one daemon. Not thread-safe.

    Raises DatabaseUnavailable, BatchRejected, PositionConflict and FullBatchRequired.
    """

    def __init__(
        self,
        engine: Engine,
        keep_samples_seconds: float | None = None,
        *,
        begin: Callable[[], AbstractContextManager[Connection]] | None = None,
    ) -> None:
        """Samples older than ``keep_samples_seconds`` are not written: retention would delete them. None writes all.

        ``begin`` opens a transaction; default: one of the engine's.
        """
        self._engine = engine
        self._begin = begin or partial(transaction, engine)
        self._keep_samples_us = None if keep_samples_seconds is None else round(keep_samples_seconds * 1_000_000)
        self._bulk: ModuleType = postgres_sql if engine.dialect.name == "postgresql" else sqlite_sql
        self._series: InternTable[SeriesKey] = InternTable(
            schema.series, ("feed", "metric", "ticker", "user_id"), INTERNED_NAMES
        )
        self._subscriptions: InternTable[tuple[str, str]] = InternTable(
            schema.subscriptions, ("path", "params"), INTERNED_NAMES
        )
        self.instance_id = 0
        self.server_address = ""  # host:port of the PostgreSQL server that this run has registered on
        self.proven_time = ProvenTime()
        self._run_id = ""
        self._position = 0  # as this run has left it
        self._highest_position = 0  # that this run has committed: the database may go back, and forward again
        self._attempted_at: set[datetime] = set()  # by batches past that position, whose outcome may be unknown
        self._registered_over: Any = None  # the driver's connection; what is cached came over it, and ends with it
        self._copy_policy = CopyPolicy()
        self._published_heard: Mapping[tuple[str, str], int] = {}
        self._late_first_seq = 0  # of an instance that begins in the middle of its spool
        self._not_before_us: int | None = None  # when that entry was received: earlier ones belong to another instance

    def has_instance(self, spool_id: str) -> bool:
        """Whether this spool was ever registered here."""
        with translate_errors(), self._engine.connect() as connection:
            query = select(schema.instances.c.instance_id).where(schema.instances.c.spool_id == spool_id)
            return connection.execute(query).first() is not None

    def register(
        self, instance: InstanceInfo, extent: SpoolExtent = _NEW_SPOOL, lost: LostSpan | None = None
    ) -> Registration:
        """Become the run that writes as this instance, unless it is FOREIGN.

        A new instance's position is the seq before the spool's first. ``lost`` goes into the coverage of a new one.
        Until this has succeeded, and again after each error but BatchRejected, all writes raise PositionConflict.
        Raises DatabaseUnavailable for a primary that was replaced by the server that the spool was written to.
        """
        self._registered_over = None
        self._series.clear()
        self._subscriptions.clear()
        self._published_heard = {}
        self._copy_policy = CopyPolicy()  # the database may have any rows now, also those of another instance
        with self._begin() as connection:
            server = self._find_server(connection, extent)
            is_own_commit = partial(self._is_own_commit, connection)
            found = claim(connection, instance, extent, is_own_commit=is_own_commit, lost=lost)
            driver_connection = connection.connection.driver_connection
        if found.ownership is not Ownership.FOREIGN:
            self.instance_id, self._run_id, self._position = found.instance_id, instance.run_id, found.position
            self._highest_position = max(self._highest_position, found.position)
            self._attempted_at.clear()
            self._registered_over = driver_connection
        if found.ownership is Ownership.NEW:
            self._late_first_seq, self._not_before_us = extent.first_seq if extent.first_seq > 1 else 0, None
        return found._replace(server=server)

    def _find_server(self, connection: Connection, extent: SpoolExtent) -> ServerIdentity | None:
        """Note which server was found, and refuse a primary that was replaced after this connection was made."""
        driver_connection: Any = connection.connection.driver_connection
        self.server_address = server_address(driver_connection) if connection.dialect.name == "postgresql" else ""
        server = read_server_identity(connection)
        if reason := describe_replaced(self.server_address, server, extent.server):
            connection.invalidate()  # the next one may lead to another host
            raise DatabaseUnavailable(reason)
        return server

    def _is_own_commit(self, connection: Connection, row: Any) -> bool:
        """Return whether this process moved the position there. A copy of its memory has the same run id."""
        c = schema.batches.c
        last = (c.instance_id == row.instance_id, c.last_seq == row.position)
        committed_at = connection.execute(select(c.committed_at).where(*last)).scalar()
        return row.position <= self._highest_position or committed_at in self._attempted_at

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Run the block in a transaction over the connection that this run registered over.

        Raises PositionConflict if that connection was lost or replaced: the database may be another one now.
        """
        if self._registered_over is None:
            raise PositionConflict("not registered over the present connection to the database")
        try:
            with self._begin() as connection:
                if connection.connection.driver_connection is not self._registered_over:
                    raise PositionConflict("the connection to the database was replaced")
                yield connection
        except (DatabaseUnavailable, PositionConflict):
            self._registered_over = None
            raise

    def _own_row(self) -> ColumnElement[bool]:
        c = schema.instances.c
        return (c.instance_id == self.instance_id) & (c.run_id == self._run_id)

    def close_coverage_as_lost(self, until_us: int) -> None:
        """End this instance: what it received between its last heartbeat here and ``until_us`` is lost."""
        with self._transaction() as connection:
            row = connection.execute(select(schema.instances).where(self._own_row()).with_for_update()).one_or_none()
            if row is None:
                raise PositionConflict("another run has taken this instance over")
            since_us = until_us if row.heartbeat_at is None else to_us(row.heartbeat_at)
            timeline = coverage_intervals.load(connection, self.instance_id)
            reason = "the database lacks what was written after this: it is an older copy"
            timeline.apply(Transition(row.position + 1, since_us, "lost", reason, ()), {})
            timeline.close_all(until_us)
            coverage_intervals.save(connection, self.instance_id, timeline)

    def publish_heartbeat(self, at_us: int, heard_us: Mapping[tuple[str, str], int] | None = None) -> None:
        """State that everything received before ``at_us`` is in the tables, and when each group's connection was heard.

        ``heard_us``: (path, shared params) → µs. Raises PositionConflict if the position is not where this run left it.
        """
        heard_us = heard_us or {}
        with self._transaction() as connection:
            unmoved = (self._own_row(), schema.instances.c.position == self._position)
            beat = update(schema.instances).where(*unmoved).values(heartbeat_at=to_datetime(at_us))
            if connection.execute(beat).rowcount != 1:
                raise PositionConflict(f"the position is not {self._position}, where this run has left it")
            if heard_us != self._published_heard:
                self._replace_connections(connection, heard_us)
        self._published_heard = dict(heard_us)

    def _replace_connections(self, connection: Connection, heard_us: Mapping[tuple[str, str], int]) -> None:
        table = schema.connections
        connection.execute(delete(table).where(table.c.instance_id == self.instance_id))
        if heard_us:
            names = {"instance_id": self.instance_id}
            rows = [
                names | {"path": path, "params": params, "heard_at": to_datetime(at_us)}
                for (path, params), at_us in heard_us.items()
            ]
            connection.execute(insert(table), rows)

    def write(self, batch: Batch) -> WriteResult:
        """Commit a whole batch. If its position does not follow, raises PositionConflict, with nothing changed."""
        self._expire(batch)
        if batch.expired and batch.deduplicated_rows:  # also rows that an earlier attempt took out
            raise FullBatchRequired("some rows are older than samples are kept")
        series = self._intern_series(batch)
        if series.rejections and batch.deduplicated_rows:
            raise FullBatchRequired("the database rejects the name of a series")
        subscriptions = self._intern_subscriptions(batch)
        for method in self._methods():
            with suppress(BatchRejected):
                return self._write(batch, series, subscriptions, method)
        return self._write(batch, series, subscriptions, InsertMethod.ISOLATE)  # only now: savepoints cost round trips

    def _methods(self) -> Iterator[InsertMethod]:
        """Give the methods to try first. One that fails changes nothing."""
        if self._engine.dialect.name == "postgresql" and self._copy_policy.is_due:
            yield InsertMethod.COPY
            self._copy_policy.note_failed()
        yield InsertMethod.MERGE

    def _write(
        self,
        batch: Batch,
        series: _InternedSeries,
        subscriptions: dict[SubscriptionRow, int],
        method: InsertMethod,
    ) -> WriteResult:
        with self._transaction() as connection:
            self._advance(connection, batch)
            samples = SampleInsert(connection, self.instance_id, batch, series.ids)
            counts = samples.run(method)
            result, dead_letters = _summarize(batch, counts, series)
            ranges = ts_ranges.ledger_columns(samples.keys)
            self._write_journal(connection, batch, dead_letters, subscriptions, _ledger_columns(batch, result) | ranges)
        self._note_commit(batch)
        if samples.keys:
            self._copy_policy.note_written(all_new=counts.new == len(samples.keys))
        return result

    def write_samples(self, batch: Batch) -> WriteResult:
        """Commit only the samples of a batch: another database has its ledger and its dead letters.

        Its entries may have gaps. Raises PositionConflict if one of them was written before; nothing is changed then.
        """
        series = self._intern_series(batch)
        with self._transaction() as connection:
            self._advance(connection, batch, gapless=False)
            counts = SampleInsert(connection, self.instance_id, batch, series.ids).run(InsertMethod.ISOLATE)
        self._note_commit(batch)
        return _summarize(batch, counts, series)[0]

    # -- parts of a batch

    def _expire(self, batch: Batch) -> None:
        """Take out what retention would delete: too old by our clock, the database's, and the provider's own rows.

        While one of them runs ahead, live rows are newer than what the others say.
        """
        if batch.rows:
            self.proven_time.note(max(row.ts_us for row in batch.rows[-PROVING_ROWS:]))
        now_us = self.proven_time.now_us()
        if self._keep_samples_us is None or now_us is None or not batch.rows:
            return
        before_us = day_start_us(now_us - self._keep_samples_us)
        if min(row.ts_us for row in batch.rows) < before_us:
            with self._begin() as connection:
                now_us = to_us(leases.database_time(connection))
            batch.expire(min(before_us, day_start_us(now_us - self._keep_samples_us)))

    def _advance(self, connection: Connection, batch: Batch, *, gapless: bool = True) -> None:
        before = batch.first_seq - 1
        parameters = batch.last_seq, self.instance_id, self._run_id, before if gapless else 0, before
        if self._bulk.execute(connection, _ADVANCE, parameters) != 1:
            raise PositionConflict(f"entries {batch.first_seq} to {batch.last_seq} do not follow the position")

    def _note_commit(self, batch: Batch) -> None:
        self._position = batch.last_seq
        self._highest_position = max(self._highest_position, batch.last_seq)
        self._attempted_at.clear()

    def _write_journal(
        self,
        connection: Connection,
        batch: Batch,
        dead_letters: Sequence[DeadLetter],
        subscriptions: dict[SubscriptionRow, int],
        ledger: dict[str, Any],
    ) -> None:
        instance = {"instance_id": self.instance_id}
        if batch.events:
            events = [
                instance
                | {"seq": event.seq, "at": to_datetime(event.at_us), "kind": event.kind, "detail": event.detail}
                for event in batch.events
            ]
            connection.execute(insert(schema.events), events)
        if dead_letters:
            rows = [instance | _dead_letter_columns(letter, batch.origin_of(letter.seq)) for letter in dead_letters]
            connection.execute(insert_or_ignore(connection, schema.dead_letters), rows)
        if batch.retries:
            _mark_retried(connection, batch.retries.values())
        if batch.first_seq == self._late_first_seq:
            self._not_before_us = batch.first_us
        if batch.transitions:
            timeline = coverage_intervals.load(connection, self.instance_id, self._not_before_us)
            for transition in batch.transitions:
                timeline.apply(transition, subscriptions)
            coverage_intervals.save(connection, self.instance_id, timeline)
        committed_at = datetime.now(UTC)
        self._attempted_at.add(committed_at)
        ledger = ledger | instance | {"committed_at": committed_at}
        then = _INSERT_LEDGER, [ledger[name] for name in _LEDGER_COLUMNS]
        self._bulk.insert_payloads(connection, self.instance_id, batch.payloads, then)

    def _intern_series(self, batch: Batch) -> _InternedSeries:
        series = _InternedSeries({}, {})

        def intern(keys: Iterable[SeriesKey]) -> None:
            series.ids.update(self._series.intern(self._transaction, keys, _series_columns))

        def reject(key: SeriesKey, rejection: BatchRejected) -> None:
            series.rejections[key] = str(rejection)

        if batch.rows:
            bisect_rejected(list({row[0] for row in batch.rows}), intern, reject)
        return series

    def _intern_subscriptions(self, batch: Batch) -> dict[SubscriptionRow, int]:
        rows = {(row.path, row.params): row for change in batch.transitions for row in change.subscriptions}
        ids = self._subscriptions.intern(self._transaction, rows, lambda key: _subscription_columns(rows[key]))
        return {row: ids[row.path, row.params] for change in batch.transitions for row in change.subscriptions}


def _series_columns(key: SeriesKey) -> dict[str, Any]:
    feed, metric, ticker, user_id = key
    return {"feed": feed, "metric": metric, "ticker": ticker, "user_id": user_id, "first_seen_at": datetime.now(UTC)}


def _subscription_columns(subscription: SubscriptionRow) -> dict[str, Any]:
    return subscription._asdict() | {"first_seen_at": datetime.now(UTC)}


def _dead_letter_columns(letter: DeadLetter, origin: Origin) -> dict[str, Any]:
    columns = letter._asdict() | origin._asdict() | {"received_at": to_datetime(letter.received_us)}
    del columns["received_us"]
    return columns


def _mark_retried(connection: Connection, letters: Iterable[RetriedLetter]) -> None:
    """Mark the letters whose origin is known. Ids do not identify: a letter that is written again may get another."""
    c = schema.dead_letters.c
    mark = update(schema.dead_letters).where(
        c.instance_id == bindparam("instance_id_"),
        c.seq == bindparam("seq_"),
        c.row_index.is_not_distinct_from(bindparam("row_index_", type_=c.row_index.type)),
        c.received_at == bindparam("received_at_"),
    )
    rows = [
        {f"{name}_": value for name, value in letter.origin._asdict().items()}
        | {"received_at_": to_datetime(letter.received_us)}
        for letter in letters
        if letter.origin is not None
    ]
    if rows:
        connection.execute(mark.values(retried_at=datetime.now(UTC)), rows)


def _ledger_columns(batch: Batch, result: WriteResult) -> dict[str, Any]:
    return {
        "first_seq": batch.first_seq,
        "last_seq": batch.last_seq,
        "frames": batch.frames,
        "facts": batch.facts,
        "row_count": batch.row_count - result.dead_siblings,
        "new_rows": result.new,
        "revised_rows": result.revised,
        "duplicate_rows": result.duplicate,
        "dead_frames": result.dead_frames,
        "dead_rows": result.dead_rows,
        "expired_rows": result.expired,
    }


def _summarize(batch: Batch, counts: InsertCounts, series: _InternedSeries) -> tuple[WriteResult, Sequence[DeadLetter]]:
    """Return what became of a batch, and its dead letters: those of the decoder and those of rejected values."""
    unnamed = [row for row in batch.rows if row.series in series.rejections] if series.rejections else []
    rejected = counts.rejected + [dead_letter_of(row, series.rejections[row.series]) for row in unnamed]
    merged = _merge_letters_per_row(rejected)
    dead_letters = batch.dead_letters + merged
    names = {id_: key for key, id_ in series.ids.items()} if counts.not_current else {}
    result = WriteResult(
        new=counts.new,
        revised=counts.revised,
        duplicate=counts.duplicate + batch.deduplicated_rows,
        dead_rows=sum(letter.row_index is not None for letter in dead_letters),
        dead_frames=sum(letter.row_index is None for letter in dead_letters),
        expired=len(batch.expired),
        dead_siblings=len(rejected) - len(merged),
        uncertain_keys=frozenset(
            [(names[id_], ts_us) for id_, ts_us in counts.not_current]
            + [(row.series, row.ts_us) for row in unnamed]
            + [(row.series, row.ts_us) for row in batch.expired]
        ),
    )
    return result, dead_letters


def _merge_letters_per_row(letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    """Make one dead letter of a row's rejected values."""
    rows: dict[tuple[int, int | None], DeadLetter] = {}
    for letter in letters:
        before = rows.get((letter.seq, letter.row_index))
        body = json.dumps(json.loads(before.body) | json.loads(letter.body)) if before else letter.body
        rows[letter.seq, letter.row_index] = letter._replace(body=body)
    return list(rows.values())
