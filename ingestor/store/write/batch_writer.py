"""The idempotent write: one batch, one transaction, however often it is tried.

The position moves by compare-and-set in the batch's first statement: a batch that an earlier try did commit, perhaps
late and unseen, changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, insert, select, update

from ingestor.core.entries import SeriesKey
from ingestor.core.times import day_start_us, to_datetime, to_us
from ingestor.errors import BatchRejected, DatabaseUnavailable, FullBatchRequired, PositionConflict
from ingestor.store import leases, schema
from ingestor.store.engine import insert_or_ignore, transaction, translate_errors
from ingestor.store.write import bulk_postgres, bulk_sqlite, coverage_intervals, revision_rows
from ingestor.store.write.batch import (
    Batch,
    DeadLetter,
    Origin,
    SampleRow,
    SubscriptionRow,
    Transition,
    WriteResult,
)
from ingestor.store.write.interning import InternTable
from ingestor.store.write.revisions import GroupedRows, SampleKey, SampleValue, group_by_key

INTERNED_NAMES = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceInfo:
    """One spool's life, as it introduces itself to a database."""

    spool_id: str
    name: str
    version: str
    config_sha256: str
    started_us: int


@dataclass(slots=True)
class _WriteCounts:
    """What became of rows, summed over the parts of a halved batch."""

    partial: bool  # known rows were left out of the batch
    new: int = 0
    revised: int = 0
    duplicate: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    late: list[SampleKey] = field(default_factory=list)  # keys with a value that did not become current


class BatchWriter:
    """Write the batches of one daemon. Not thread-safe.

    Raises DatabaseUnavailable, BatchRejected, PositionConflict and FullBatchRequired.
    """

    def __init__(
        self,
        engine: Engine,
        keep_samples_seconds: float | None = None,
        *,
        begin: Callable[[], AbstractContextManager[Connection]] | None = None,
    ) -> None:
        """What is older than samples are kept is not written, since retention would take it; None writes all.

        ``begin`` opens a transaction; default: one of the engine's.
        """
        self._engine = engine
        self._begin = begin or partial(transaction, engine)
        self._keep_samples_us = None if keep_samples_seconds is None else round(keep_samples_seconds * 1_000_000)
        self._bulk: ModuleType = bulk_postgres if engine.dialect.name == "postgresql" else bulk_sqlite
        self._series: InternTable[SeriesKey] = InternTable(
            schema.series, ("feed", "metric", "ticker", "user_id"), INTERNED_NAMES
        )
        self._subscriptions: InternTable[tuple[str, str]] = InternTable(
            schema.subscriptions, ("path", "params"), INTERNED_NAMES
        )
        self.instance_id = 0

    def has_instance(self, spool_id: str) -> bool:
        """Whether this spool was ever introduced here."""
        with translate_errors(), self._engine.connect() as connection:
            query = select(schema.instances.c.instance_id).where(schema.instances.c.spool_id == spool_id)
            return connection.execute(query).first() is not None

    def register(self, instance: InstanceInfo, first_seq: int) -> int:
        """Make the instance known, and return its position: the last seq that is committed.

        To an instance that this database has not met, that is the one before its spool's ``first_seq``.
        """
        table = schema.instances
        introduction = {
            "name": instance.name,
            "version": instance.version,
            "config_sha256": instance.config_sha256,
            "started_at": to_datetime(instance.started_us),
        }
        self._series.clear()
        self._subscriptions.clear()
        with self._begin() as connection:
            new = insert_or_ignore(connection, schema.instances)
            connection.execute(new, [{"spool_id": instance.spool_id, "position": first_seq - 1, **introduction}])
            mine = table.c.spool_id == instance.spool_id
            connection.execute(update(table).where(mine).values(**introduction))
            row = connection.execute(select(table.c.instance_id, table.c.position).where(mine)).one()
        self.instance_id = row.instance_id
        position: int = row.position
        return position

    def close_coverage_as_lost(self, now_us: int) -> None:
        """What this instance received since its last heartbeat here is not to be had any more: close its coverage."""
        table = schema.instances
        with self._begin() as connection:
            row = connection.execute(select(table).where(table.c.instance_id == self.instance_id)).one()
            since_us = now_us if row.heartbeat_at is None else to_us(row.heartbeat_at)
            timeline = coverage_intervals.load(connection, self.instance_id)
            reason = "the database does not hold what was written after this"
            timeline.apply(Transition(row.position + 1, since_us, "lost", reason, ()), {})
            timeline.close_all(now_us)
            coverage_intervals.save(connection, self.instance_id, timeline)

    def publish_heartbeat(self, at_us: int) -> None:
        """Publish: what was received before this stamp is in the tables."""
        mine = schema.instances.c.instance_id == self.instance_id
        with self._begin() as connection:
            connection.execute(update(schema.instances).where(mine).values(heartbeat_at=to_datetime(at_us)))

    def write(self, batch: Batch) -> WriteResult:
        """Commit a batch, whole. PositionConflict: somebody did already; nothing was changed."""
        self._expire(batch)
        if batch.expired and batch.deduplicated_rows:  # also those that an earlier try took out
            raise FullBatchRequired("some rows are older than samples are kept")
        ids, refusals = self._intern_series({row[0] for row in batch.rows})
        if refusals and batch.deduplicated_rows:
            raise FullBatchRequired("the database refuses the name of a series")
        subscriptions = self._intern_subscriptions(batch)
        try:
            return self._write(batch, ids, refusals, subscriptions, careful=False)
        except BatchRejected:
            return self._write(batch, ids, refusals, subscriptions, careful=True)

    def _write(
        self,
        batch: Batch,
        ids: dict[SeriesKey, int],
        refusals: dict[SeriesKey, str],
        subscriptions: dict[SubscriptionRow, int],
        *,
        careful: bool,
    ) -> WriteResult:
        names = {id_: series for series, id_ in ids.items()}
        with self._begin() as connection:
            self._advance(connection, batch)
            tally = self._write_rows(connection, batch, ids, careful=careful)
            letters = batch.dead_letters + _by_row(tally.dead + _unnamed(batch.rows, refusals))
            written = _outcome(batch, tally, letters, names, refusals)
            self._write_journal(connection, batch, letters, subscriptions, written)
        return written

    def write_samples(self, batch: Batch) -> WriteResult:
        """Commit a batch's rows, and nothing else of it: another database has its ledger and its letters.

        Its entries need not be gapless. PositionConflict: one of them was written already; nothing was changed.
        """
        ids, refusals = self._intern_series({row[0] for row in batch.rows})
        names = {id_: series for series, id_ in ids.items()}
        with self._begin() as connection:
            self._advance(connection, batch, gapless=False)
            tally = self._write_rows(connection, batch, ids, careful=True)
        letters = batch.dead_letters + _by_row(tally.dead + _unnamed(batch.rows, refusals))
        return _outcome(batch, tally, letters, names, refusals)

    def close(self) -> None:
        self._engine.dispose()

    # -- one batch

    def _expire(self, batch: Batch) -> None:
        """By our clock and the database's, as retention does: to one that runs ahead nothing is too old."""
        if self._keep_samples_us is None or not batch.rows:
            return
        before_us = day_start_us(time.time_ns() // 1000 - self._keep_samples_us)
        if min(row.ts_us for row in batch.rows) < before_us:
            with self._begin() as connection:
                now_us = to_us(leases.database_time(connection))
            batch.expire(min(before_us, day_start_us(now_us - self._keep_samples_us)))

    def _advance(self, connection: Connection, batch: Batch, *, gapless: bool = True) -> None:
        c = schema.instances.c
        follows = c.position == batch.first_seq - 1 if gapless else c.position < batch.first_seq
        mine = update(schema.instances).where(c.instance_id == self.instance_id, follows)
        moved = connection.execute(mine.values(position=batch.last_seq))
        if moved.rowcount != 1:
            raise PositionConflict(f"entries {batch.first_seq} to {batch.last_seq} were written already")

    def _write_rows(
        self, connection: Connection, batch: Batch, ids: dict[SeriesKey, int], *, careful: bool
    ) -> _WriteCounts:
        """Write what is new and settle the rest. Unless ``careful``, one row that is refused fails the whole batch."""
        rows = [row for row in batch.rows if row.series in ids]
        folded = group_by_key([(ids[row[0]], row[1]) for row in rows], rows)
        tally = _WriteCounts(batch.deduplicated_rows > 0)
        keys = sorted(folded.first)  # two daemons that take locks in different order would deadlock
        if not careful and keys:
            return self._place_all(connection, folded, keys, batch.retries, partial=tally.partial)
        self._place(connection, folded, keys, tally, batch.retries)
        return tally

    def _place(
        self,
        connection: Connection,
        folded: GroupedRows,
        keys: list[SampleKey],
        tally: _WriteCounts,
        retries: Container[int],
    ) -> None:
        """Write the values of ``keys``; if the database refuses one, halve until it stands alone."""
        if not keys:
            return
        try:
            with connection.begin_nested(), translate_errors():
                part = self._place_all(connection, folded, keys, retries, partial=tally.partial)
        except BatchRejected as refusal:
            if len(keys) == 1:
                _prove_well(connection, self.instance_id)
                if tally.partial:
                    raise FullBatchRequired("the database refuses a value") from None
                tally.late += keys
                tally.dead += [_letter(row, str(refusal)) for row in folded.rows_of(keys[0])]
                return
            middle = len(keys) // 2
            self._place(connection, folded, keys[:middle], tally, retries)
            self._place(connection, folded, keys[middle:], tally, retries)
            return
        tally.new += part.new
        tally.revised += part.revised
        tally.duplicate += part.duplicate
        tally.late += part.late

    def _place_all(
        self,
        connection: Connection,
        folded: GroupedRows,
        keys: list[SampleKey],
        retries: Container[int],
        *,
        partial: bool,
    ) -> _WriteCounts:
        rows = [(key, folded.first[key]) for key in keys]
        new = self._bulk.insert_samples(connection, self.instance_id, rows)
        disputed = folded.restated.intersection(keys) if folded.restated else set()
        if new < len(rows):
            # Only now: looking for differing values in every batch costs three times the insert.
            disputed.update(self._bulk.find_conflicts(connection, self.instance_id, rows))
        repeated = folded.count_repeats(keys, disputed) if folded.repeats else 0
        tally = _WriteCounts(partial, new=new, duplicate=len(rows) - new + repeated)
        if disputed:
            self._settle(connection, folded, sorted(disputed), tally, retries)
        return tally

    def _settle(
        self,
        connection: Connection,
        folded: GroupedRows,
        keys: list[SampleKey],
        tally: _WriteCounts,
        retries: Container[int],
    ) -> None:
        """Bring differing values in order: which is current, and which are revisions."""
        known = revision_rows.load(connection, keys)
        if len(known) < len(keys):
            raise DatabaseUnavailable("another daemon has just pruned samples that this batch was compared with")
        for key in keys:
            record = known[key]
            offers = [
                SampleValue.from_row(row, self.instance_id, retried=row.seq in retries) for row in folded.rows_of(key)
            ]
            if (record.current.instance_id, record.current.seq) == (self.instance_id, offers[0].seq):
                del offers[0]
            else:
                tally.duplicate -= 1  # counted as one when it did not go in
            taken = [(record.offer(value), record.current.value == value.value) for value in offers]
            revised = sum(new for new, _ in taken)
            tally.revised += revised
            tally.duplicate += len(offers) - revised
            if not all(current for _, current in taken):
                tally.late.append(key)
        if tally.partial and tally.late:
            raise FullBatchRequired("a value is older than another instance's; a repetition of it might be newer")
        revision_rows.save(connection, known)

    def _write_journal(
        self,
        connection: Connection,
        batch: Batch,
        letters: Sequence[DeadLetter],
        subscriptions: dict[SubscriptionRow, int],
        written: WriteResult,
    ) -> None:
        me = {"instance_id": self.instance_id}
        if batch.payloads:
            self._bulk.insert_payloads(connection, self.instance_id, batch.payloads)
        if batch.events:
            events = [
                me | {"seq": e.seq, "at": to_datetime(e.at_us), "kind": e.kind, "detail": e.detail}
                for e in batch.events
            ]
            connection.execute(insert(schema.events), events)
        if letters:
            dead = [me | _letter_columns(letter, batch.origins[letter.seq]) for letter in letters]
            connection.execute(insert_or_ignore(connection, schema.dead_letters), dead)
        if batch.retries:
            table = schema.dead_letters
            mark = update(table).where(table.c.dead_letter_id == bindparam("id_")).values(retried_at=datetime.now(UTC))
            connection.execute(mark, [{"id_": letter_id} for letter_id in batch.retries.values()])
        if batch.transitions:
            timeline = coverage_intervals.load(connection, self.instance_id)
            for transition in batch.transitions:
                timeline.apply(transition, subscriptions)
            coverage_intervals.save(connection, self.instance_id, timeline)
        connection.execute(insert(schema.batches), [me | _ledger(batch, written)])

    def _intern_series(self, keys: set[SeriesKey]) -> tuple[dict[SeriesKey, int], dict[SeriesKey, str]]:
        """The ids of ``keys``, and why the database refuses some of them (an encoding that lacks a character)."""
        try:
            return self._series.intern(self._begin, keys, _series_columns), {}
        except BatchRejected as refusal:
            if len(keys) == 1:
                return {}, dict.fromkeys(keys, str(refusal))
        ordered = sorted(keys)
        ids, refusals = self._intern_series(set(ordered[: len(ordered) // 2]))
        more_ids, more_refusals = self._intern_series(set(ordered[len(ordered) // 2 :]))
        return ids | more_ids, refusals | more_refusals

    def _intern_subscriptions(self, batch: Batch) -> dict[SubscriptionRow, int]:
        wanted = {(s.path, s.params): s for t in batch.transitions for s in t.subscriptions}
        ids = self._subscriptions.intern(self._begin, wanted, lambda key: _subscription_columns(wanted[key]))
        return {s: ids[s.path, s.params] for t in batch.transitions for s in t.subscriptions}


def _series_columns(key: SeriesKey) -> dict[str, Any]:
    feed, metric, ticker, user_id = key
    return {"feed": feed, "metric": metric, "ticker": ticker, "user_id": user_id, "first_seen_at": datetime.now(UTC)}


def _subscription_columns(subscription: SubscriptionRow) -> dict[str, Any]:
    return subscription._asdict() | {"first_seen_at": datetime.now(UTC)}


def _letter_columns(letter: DeadLetter, origin: Origin) -> dict[str, Any]:
    columns = letter._asdict() | origin._asdict() | {"received_at": to_datetime(letter.received_us)}
    del columns["received_us"]
    return columns


def _ledger(batch: Batch, written: WriteResult) -> dict[str, Any]:
    return {
        "first_seq": batch.first_seq,
        "last_seq": batch.last_seq,
        "committed_at": datetime.now(UTC),
        "frames": batch.frames,
        "facts": batch.facts,
        "row_count": batch.row_count - written.dead_siblings,
        "new_rows": written.new,
        "revised_rows": written.revised,
        "duplicate_rows": written.duplicate,
        "dead_frames": written.dead_frames,
        "dead_rows": written.dead_rows,
        "expired_rows": written.expired,
    }


def _prove_well(connection: Connection, instance_id: int) -> None:
    """Write something harmless and take it back. A row is set aside only if that works: else it is not the row."""
    canary = {
        "instance_id": instance_id,
        "seq": -1,
        "received_at": datetime.now(UTC),
        "stage": "canary",
        "reason": "",
        "detail": "",
        "body": "",
    }
    try:
        with translate_errors():
            attempt = connection.begin_nested()
            connection.execute(insert(schema.dead_letters), [canary])
            attempt.rollback()
    except BatchRejected as refusal:
        raise DatabaseUnavailable(f"it refuses rows, and dead letters too: {refusal}") from None


def _outcome(
    batch: Batch,
    tally: _WriteCounts,
    letters: Sequence[DeadLetter],
    names: dict[int, SeriesKey],
    refusals: dict[SeriesKey, str],
) -> WriteResult:
    refused = len(letters) - len(batch.dead_letters)
    return WriteResult(
        new=tally.new,
        revised=tally.revised,
        duplicate=tally.duplicate + batch.deduplicated_rows,
        dead_rows=sum(letter.row_index is not None for letter in letters),
        dead_frames=sum(letter.row_index is None for letter in letters),
        expired=len(batch.expired),
        dead_siblings=len(tally.dead) + sum(row.series in refusals for row in batch.rows) - refused,
        uncertain_keys=frozenset(
            [(names[id_], ts_us) for id_, ts_us in tally.late]
            + [(row.series, row.ts_us) for row in batch.rows if row.series in refusals]
            + [(row.series, row.ts_us) for row in batch.expired]
        ),
    )


def _unnamed(rows: Sequence[SampleRow], refusals: dict[SeriesKey, str]) -> list[DeadLetter]:
    return [_letter(row, refusals[row.series]) for row in rows if row.series in refusals]


def _by_row(letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    """One letter for a row of the provider's, though several of its values were refused."""
    rows: dict[tuple[int, int | None], DeadLetter] = {}
    for letter in letters:
        before = rows.get((letter.seq, letter.row_index))
        body = json.dumps(json.loads(before.body) | json.loads(letter.body)) if before else letter.body
        rows[letter.seq, letter.row_index] = letter._replace(body=body)
    return list(rows.values())


def _letter(row: SampleRow, refusal: str) -> DeadLetter:
    _, metric, ticker, user_id = row.series
    body = {"ts": to_datetime(row.ts_us).isoformat(), "ticker": ticker, metric: row.value}
    if user_id:
        body["user_id"] = user_id
    return DeadLetter(
        seq=row.seq,
        row_index=row.row_index,
        received_us=row.received_us,
        stage="insert",
        reason="refused by the database",
        detail=refusal,
        body=json.dumps(body),
    )
