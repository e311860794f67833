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

from ingestor.store.batch import Payload, Row
from ingestor.store.times import text_time
from ingestor.store.values import SampleKey

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


def insert_samples(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, Row]]) -> int:
    """Insert what is new; rows must have distinct keys. Returns how many went in."""
    stamps = _Stamps()
    return _insert(
        connection,
        _INSERT,
        [
            (series_id, stamps[ts_us], value, 0, stamps[published_us], stamps[received_us], source, instance_id, seq)
            for (series_id, ts_us), (_, _, value, published_us, received_us, source, seq, _) in rows
        ],
    )


def conflicts(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, Row]]) -> list[SampleKey]:
    """The keys of the rows just offered whose recorded value is another."""
    connection.exec_driver_sql(_STAGE)
    connection.exec_driver_sql("DELETE FROM stage")
    stamps = _Stamps()
    staged = [(key[0], stamps[key[1]], row.value, row.seq, key[1]) for key, row in rows]
    _insert(connection, "INSERT INTO stage VALUES {}", staged)
    return [(row[0], row[1]) for row in connection.exec_driver_sql(_CONFLICTS, (instance_id,))]


def insert_payloads(connection: Connection, instance_id: int, payloads: Iterable[Payload]) -> None:
    stamps = _Stamps()
    values = [
        (instance_id, seq, *origin, stamps[received_us], stamps[published_us], row_count, body)
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


class _Stamps(dict[int | None, str | None]):
    """µs → text; within a batch the same few stamps recur."""

    def __missing__(self, us: int | None) -> str | None:
        text = self[us] = text_time(us)
        return text
