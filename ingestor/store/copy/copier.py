"""Copy every table by ranges of its key, and prove at the end that both databases have the same rows.

A range is compared first, and written only if it differs. So a copy that was interrupted continues, and a copy of last
week is brought up to date, by the same steps as the first one.

The first pass reads each range in a transaction of its own: the daemon may go on for hours, and neither the WAL of
SQLite nor dead rows of PostgreSQL pile up behind a long snapshot. The second pass reads one snapshot, writes what has
changed meanwhile, and compares everything. Readers of the target must not take it for complete before that, so the
rows of ``instances`` follow at the end, in one transaction with the mark that the copy is complete; see ``target``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, func, select

from ingestor.errors import BatchRejected, CopyRejected
from ingestor.store import schema
from ingestor.store.copy import table_access
from ingestor.store.copy import target as copy_target
from ingestor.store.copy.row_format import Key, RowFormat
from ingestor.store.copy.table_access import digest_range, digest_rows
from ingestor.store.engine import repeatable_read, shown_url, transaction, translate_errors
from ingestor.store.open_database import name_database

# Leases are not copied: they belong to daemons that run now.
HISTORY = tuple(
    RowFormat(table)
    for table in (
        schema.series,
        schema.samples,
        schema.sample_revisions,
        schema.deletions,
        schema.payload_blocks,
        schema.dead_letters,
        schema.subscriptions,
        schema.coverage,
        schema.repairs,
        schema.events,
        schema.batches,
    )
)
LAST = tuple(map(RowFormat, (schema.connections, schema.instances)))  # who has written all that, and up to where


@dataclass(slots=True)
class CopiedTable:
    """What a copy has done for a table, and what the comparison at its end has found."""

    name: str
    rows: int = 0  # of the source
    written: int = 0
    target_rows: int = 0
    sha256: str = ""  # of the rows, in the order of their keys
    target_sha256: str = ""
    different: list[str] = field(default_factory=list)  # key ranges that are not equal

    @property
    def equal(self) -> bool:
        return (self.rows, self.sha256) == (self.target_rows, self.target_sha256) and not self.different


class DatabaseCopy:
    """Copies one database into another one, which ``target.begin`` has prepared."""

    def __init__(self, source: Engine, target: Engine, advance: Callable[[str, int], None]) -> None:
        """``advance`` receives the step and for how many more rows it is done; 0 when the step is."""
        self._source = source
        self._target = target
        self._advance = advance
        self._tables = {form.table.name: CopiedTable(form.table.name) for form in (*HISTORY, *LAST)}

    def run(self) -> list[CopiedTable]:
        """Copy and compare. The target is usable only if every table is equal.

        Raises DatabaseUnavailable, CopyRejected.
        """
        for form in HISTORY:
            self._walk(form, self._short_read, f"copied {form.table.name}")
        with repeatable_read(self._source) as snapshot, snapshot.begin():
            for form in HISTORY:
                self._prove(form, snapshot)
            tables = list(self._tables.values())
            if all(self._tables[form.table.name].equal for form in HISTORY):
                self._finish(snapshot)
        return tables

    @contextmanager
    def _short_read(self) -> Iterator[Connection]:
        with translate_errors(), self._source.connect() as connection:
            yield connection

    def _walk(
        self,
        form: RowFormat,
        begin: Callable[[], AbstractContextManager[Connection]],
        step: str,
        compare: Callable[[Key | None, Key | None, list[bytes]], None] = lambda _after, _upto, _rows: None,
    ) -> None:
        """Write every range that differs. ``compare`` receives each range with the rows of the source."""
        after: Key | None = None
        while True:
            with name_database(shown_url(self._source)), begin() as source:
                rows = table_access.read_range(source, form, after)
            # The last range has no limit, since the target may have more rows.
            upto = form.key(rows[-1]) if table_access.is_full(rows) else None
            self._write_difference(form, after, upto, rows)
            compare(after, upto, rows)
            if rows:
                self._advance(step, len(rows))
            if upto is None:
                self._advance(step, 0)
                return
            after = upto

    def _write_difference(self, form: RowFormat, after: Key | None, upto: Key | None, rows: list[bytes]) -> None:
        try:
            with transaction(self._target) as target:
                wanted = digest_rows(rows)
                found = digest_range(target, form, after, upto, wanted)
                if found == wanted:
                    return
                if found.rows:
                    table_access.delete_range(target, form, after, upto)
                table_access.insert_rows(target, form, rows)
        except BatchRejected as error:
            place = _describe_range(form, after, upto)
            raise CopyRejected(f"{form.table.name}, {place}: the target rejects a row: {error}") from None
        self._tables[form.table.name].written += len(rows)

    def _prove(self, form: RowFormat, snapshot: Connection) -> None:
        table = self._tables[form.table.name]
        ours, theirs = hashlib.sha256(), hashlib.sha256()

        def compare(after: Key | None, upto: Key | None, rows: list[bytes]) -> None:
            wanted = digest_rows(rows)
            with translate_errors(), self._target.connect() as connection:
                found = digest_range(connection, form, after, upto, wanted)
            ours.update(wanted.sha256)
            theirs.update(found.sha256)
            table.rows += wanted.rows
            table.target_rows += found.rows
            if found != wanted:
                table.different.append(_describe_range(form, after, upto))

        self._walk(form, lambda: nullcontext(snapshot), f"compared {form.table.name}", compare)
        table.sha256, table.target_sha256 = ours.hexdigest(), theirs.hexdigest()

    def _finish(self, snapshot: Connection) -> None:
        """Write who wrote the rows, and that the copy is complete, in one transaction."""
        with transaction(self._target) as target:
            for form in LAST:
                # Sorted here: the key of `connections` is text, whose order depends on the collation.
                rows = sorted(table_access.read_rows(snapshot, form))
                table_access.delete_range(target, form, None, None)
                table_access.insert_rows(target, form, rows)
                table, found = self._tables[form.table.name], digest_rows(sorted(table_access.read_rows(target, form)))
                table.rows, table.sha256 = len(rows), digest_rows(rows).sha256.hex()
                table.target_rows, table.target_sha256 = found.rows, found.sha256.hex()
            copy_target.set_sequences(target)
            if all(table.equal for table in self._tables.values()):
                copy_target.mark_complete(target)


def count_rows(source: Engine) -> int:
    """Return how many rows ``DatabaseCopy.run`` reads: each one twice."""
    with translate_errors(), source.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # it reads every row, or an index of them
        queries = (select(func.count()).select_from(form.table) for form in HISTORY)
        return 2 * sum(connection.execute(query).scalar_one() for query in queries)


def _describe_range(form: RowFormat, after: Key | None, upto: Key | None) -> str:
    first = f"after {form.describe(after)}" if after else "from the first row"
    return f"{first} {f'to {form.describe(upto)}' if upto else 'to the last row'}"
