"""The bulk statements on SQLite: executemany, since there is no wire to save."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from ingestor.store.batch import Payload, Row
from ingestor.store.times import text_time
from ingestor.store.values import SampleKey

_INSERT = """
INSERT INTO samples (series_id, ts, value, revision, published_at, received_at, source, instance_id, seq)
VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?) ON CONFLICT (series_id, ts) DO NOTHING
"""
_STAGE = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS stage (series_id INTEGER, ts TEXT, value REAL, seq INTEGER, us INTEGER,"
    " PRIMARY KEY (series_id, ts)) WITHOUT ROWID"
)
# CROSS says which side comes first: with statistics, which anybody may have made, SQLite would read every sample.
_CONFLICTS = """
SELECT stage.series_id, stage.us FROM stage CROSS JOIN samples s ON s.series_id = stage.series_id AND s.ts = stage.ts
WHERE (s.instance_id <> ? OR s.seq <> stage.seq) AND s.value <> stage.value
"""
_PAYLOAD = """
INSERT INTO payloads (instance_id, seq, connection_id, source, event, path, params, received_at, published_at,
row_count, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def insert_samples(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, Row]]) -> int:
    """Insert what is new; rows must have distinct keys. Returns how many went in."""
    stamps = _Stamps()
    values = [
        (
            key[0],
            stamps[key[1]],
            v.value,
            text_time(v.published_us),
            stamps[v.received_us],
            v.source,
            instance_id,
            v.seq,
        )
        for key, v in rows
    ]
    return connection.exec_driver_sql(_INSERT, values).rowcount if values else 0


def conflicts(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, Row]]) -> list[SampleKey]:
    """The keys of the rows just offered whose recorded value is another."""
    connection.exec_driver_sql(_STAGE)
    connection.exec_driver_sql("DELETE FROM stage")
    stamps = _Stamps()
    connection.exec_driver_sql(
        "INSERT INTO stage VALUES (?, ?, ?, ?, ?)",
        [(key[0], stamps[key[1]], value.value, value.seq, key[1]) for key, value in rows],
    )
    return [(row[0], row[1]) for row in connection.exec_driver_sql(_CONFLICTS, (instance_id,))]


def insert_payloads(connection: Connection, instance_id: int, payloads: Iterable[Payload]) -> None:
    values = [
        (instance_id, p.seq, *p.origin, text_time(p.received_us), text_time(p.published_us), p.row_count, p.body)
        for p in payloads
    ]
    if values:
        connection.exec_driver_sql(_PAYLOAD, values)


class _Stamps(dict[int, str]):
    """µs → text; within a batch the same few stamps recur."""

    def __missing__(self, us: int) -> str:
        text = self[us] = str(text_time(us))
        return text
