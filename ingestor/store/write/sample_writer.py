"""Insert the samples of one batch in an open transaction: new ones, revisions of others, and those to be rejected."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from types import ModuleType

from sqlalchemy import Connection, insert

from ingestor.core.entries import SeriesKey
from ingestor.core.times import to_datetime
from ingestor.errors import BatchRejected, DatabaseUnavailable, FullBatchRequired
from ingestor.store import schema
from ingestor.store.engine import translate_errors
from ingestor.store.write import postgres_sql, revision_rows, sqlite_sql
from ingestor.store.write.batch import Batch, DeadLetter, SampleRow
from ingestor.store.write.bisection import bisect_rejected
from ingestor.store.write.revisions import SampleKey, SampleValue, group_by_key


class InsertMethod(Enum):
    """How rows are inserted, from the fastest to the one that copes with all of them."""

    COPY = "all are new: one that is not, or that the database rejects, raises BatchRejected (PostgreSQL only)"
    MERGE = "some may be there already; one that the database rejects raises BatchRejected"
    ISOLATE = "one that the database rejects is counted"


@dataclass(slots=True)
class InsertCounts:
    """What became of a batch's rows."""

    new: int = 0
    revised: int = 0
    duplicate: int = 0
    rejected: list[DeadLetter] = field(default_factory=list)
    not_current: list[SampleKey] = field(default_factory=list)  # keys with a value that did not become current

    def add(self, part: InsertCounts) -> None:
        self.new += part.new
        self.revised += part.revised
        self.duplicate += part.duplicate
        self.not_current += part.not_current


class SampleInsert:
    """The rows of one batch whose series have ids, grouped by key. Raises FullBatchRequired if rows are missing."""

    def __init__(self, connection: Connection, instance_id: int, batch: Batch, ids: dict[SeriesKey, int]) -> None:
        self._connection = connection
        self._bulk: ModuleType = postgres_sql if connection.dialect.name == "postgresql" else sqlite_sql
        self._instance_id = instance_id
        self._retries = batch.retries
        self._is_deduplicated = batch.deduplicated_rows > 0
        rows = [row for row in batch.rows if row.series in ids]
        self._rows = group_by_key([(ids[row[0]], row[1]) for row in rows], rows)
        # Of the rows that are inserted if they are new. Two daemons that take locks in different order would deadlock.
        self.keys = sorted(self._rows.first)
        self._counts = InsertCounts()

    def run(self, method: InsertMethod) -> InsertCounts:
        """Insert all rows.

        The bisection is here, inside the transaction, although entries are bisected as well: where every frame has a
        bad row, a transaction for each entry would hold up all others.
        """
        if self.keys and method is InsertMethod.ISOLATE:
            bisect_rejected(self.keys, self._insert_in_savepoint, self._reject)
        elif self.keys:
            bulk_insert = self._bulk.copy_samples if method is InsertMethod.COPY else self._bulk.insert_samples
            self._counts = self._insert_rows(self.keys, bulk_insert)
        return self._counts

    def _insert_in_savepoint(self, keys: Sequence[SampleKey]) -> None:
        with self._connection.begin_nested(), translate_errors():
            part = self._insert_rows(keys, self._bulk.insert_samples)
        self._counts.add(part)

    def _reject(self, key: SampleKey, rejection: BatchRejected) -> None:
        self._require_healthy_database()
        if self._is_deduplicated:
            raise FullBatchRequired("the database rejects a value") from None
        self._counts.not_current.append(key)
        self._counts.rejected += [dead_letter_of(row, str(rejection)) for row in self._rows.rows_of(key)]

    def _require_healthy_database(self) -> None:
        """Raise DatabaseUnavailable unless the database accepts a dead letter now: then the row is not the reason.

        Storing the dead letters at the end of the transaction proves less: by then the database may have recovered.
        """
        probe = {"instance_id": self._instance_id, "seq": -1, "received_at": datetime.now(UTC), "stage": "probe"}
        probe |= {"reason": "", "detail": "", "body": ""}
        try:
            with translate_errors():
                savepoint = self._connection.begin_nested()
                self._connection.execute(insert(schema.dead_letters), [probe])
                savepoint.rollback()
        except BatchRejected as error:
            raise DatabaseUnavailable(f"the database rejects rows, and dead letters too, retrying: {error}") from None

    def _insert_rows(self, keys: Sequence[SampleKey], bulk_insert: Callable[..., int]) -> InsertCounts:
        rows = [(key, self._rows.first[key]) for key in keys]
        new = bulk_insert(self._connection, self._instance_id, rows)
        disputed = self._rows.restated.intersection(keys) if self._rows.restated else set()
        if new < len(rows):
            # Only now: looking for differing values in every batch costs three times the insert.
            disputed.update(self._bulk.find_conflicts(self._connection, self._instance_id, rows))
        repeated = self._rows.count_repeats(keys, disputed) if self._rows.repeats else 0
        counts = InsertCounts(new=new, duplicate=len(rows) - new + repeated)
        if disputed:
            self._resolve_conflicts(sorted(disputed), counts)
        return counts

    def _resolve_conflicts(self, keys: list[SampleKey], counts: InsertCounts) -> None:
        """Decide which of several values of a key is current, and store the others as revisions."""
        records = revision_rows.load(self._connection, keys)
        if len(records) < len(keys):
            raise DatabaseUnavailable("another daemon has just deleted samples that this batch was compared with")
        for key in keys:
            record = records[key]
            values = [
                SampleValue.from_row(row, self._instance_id, retried=row.seq in self._retries)
                for row in self._rows.rows_of(key)
            ]
            if (record.current.instance_id, record.current.seq) == (self._instance_id, values[0].seq):
                del values[0]  # inserted above
            else:
                counts.duplicate -= 1  # counted as a duplicate above, since it was not inserted
            outcomes = [(record.offer(value), record.current.value == value.value) for value in values]
            revised = sum(is_new for is_new, _ in outcomes)
            counts.revised += revised
            counts.duplicate += len(values) - revised
            if not all(is_current for _, is_current in outcomes):
                counts.not_current.append(key)
        if self._is_deduplicated and counts.not_current:
            raise FullBatchRequired("a value is older than another instance's; a repetition of it might be newer")
        revision_rows.save(self._connection, records)


def dead_letter_of(row: SampleRow, detail: str) -> DeadLetter:
    """The dead letter of a value that the database rejects."""
    _, metric, ticker, user_id = row.series
    body = {"ts": to_datetime(row.ts_us).isoformat(), "ticker": ticker, metric: row.value}
    if user_id:
        body["user_id"] = user_id
    return DeadLetter(
        seq=row.seq,
        row_index=row.row_index,
        received_us=row.received_us,
        stage="insert",
        reason="rejected by the database",
        detail=detail,
        body=json.dumps(body),
    )
