"""The bulk statements on SQLite: some dozens of rows to a statement.

With one row to each, the interpreter's lock would change hands for every row, and the other threads' work would stand
between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from ingestor.core.times import to_sqlite_text
from ingestor.store.write.batch import Payload, SampleRow
from ingestor.store.write.revisions import SampleKey

STAMPS_REMEMBERED = 20_000
_ROWS = 64
_INSERT = (
    "INSERT INTO samples (series_id, ts, value, revision, published_at, received_at, source, instance_id, seq)"
    " VALUES {} ON CONFLICT (series_id, ts) DO NOTHING"
)
_STAGE = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS stage (series_id INTEGER, ts TEXT, value REAL, seq INTEGER, us INTEGER,"
    " PRIMARY KEY (series_id, ts)) WITHOUT ROWID"
)
# CROSS says which side comes first: with statistics, which anybody may have made, SQLite would read every sample.
_CONFLICTS = """
SELECT stage.series_id, stage.us FROM stage CROSS JOIN samples s ON s.series_id = stage.series_id AND s.ts = stage.ts
WHERE (s.instance_id <> ? OR s.seq <> stage.seq) AND s.value <> stage.value
"""
_PAYLOAD = (
    "INSERT INTO payloads (instance_id, seq, connection_id, source, event, path, params, received_at, published_at,"
    " row_count, body) VALUES {}"
)


def insert_samples(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, SampleRow]]) -> int:
    """Insert what is new; rows must have distinct keys. Returns how many went in."""
    return _insert(
        connection,
        _INSERT,
        [
            (series_id, _stamps[ts_us], value, 0, _stamps[published_us], _stamps[received_us], source, instance_id, seq)
            for (series_id, ts_us), (_, _, value, published_us, received_us, source, seq, _) in rows
        ],
    )


def find_conflicts(
    connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, SampleRow]]
) -> list[SampleKey]:
    """The keys of the rows just offered whose recorded value is another."""
    connection.exec_driver_sql(_STAGE)
    connection.exec_driver_sql("DELETE FROM stage")
    staged = [(key[0], _stamps[key[1]], row.value, row.seq, key[1]) for key, row in rows]
    _insert(connection, "INSERT INTO stage VALUES {}", staged)
    return [(row[0], row[1]) for row in connection.exec_driver_sql(_CONFLICTS, (instance_id,))]


def insert_payloads(connection: Connection, instance_id: int, payloads: Iterable[Payload]) -> None:
    values = [
        (instance_id, seq, *origin, _stamps[received_us], _stamps[published_us], row_count, body)
        for seq, origin, received_us, published_us, row_count, body in payloads
    ]
    _insert(connection, _PAYLOAD, values)


def _insert(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Returns how many went in."""
    cursor = connection.connection.cursor()
    try:
        done = 0
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            cursor.execute(statement.format(_places(len(some), len(some[0]))), tuple(chain.from_iterable(some)))
            done += cursor.rowcount
        return done
    finally:
        cursor.close()


@lru_cache
def _places(rows: int, columns: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


class _TimestampCache(dict[int | None, str | None]):
    """µs → text, bounded: a sample's receipt is that of its payload, and rows have the same few times."""

    def __missing__(self, us: int | None) -> str | None:
        if len(self) >= STAMPS_REMEMBERED:
            self.clear()
        text = self[us] = to_sqlite_text(us)
        return text


_stamps = _TimestampCache()
