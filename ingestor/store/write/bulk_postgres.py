"""The bulk statements on PostgreSQL: binary COPY into a temporary table, and one merge.

A few rows go as arrays in the merge itself: their time is that of the round trips, and those are seven less.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import Connection

from ingestor.store.write.batch import Origin, Payload, SampleRow
from ingestor.store.write.revisions import SampleKey

# COPY's binary format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_2000_US = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01
_WRITE_ROWS = 500  # one write per row would cost more than the row

_ARRAY_ROWS = 500  # more, and COPY is quicker
_STAGE = """
CREATE TEMPORARY TABLE IF NOT EXISTS stage (
    series_id integer NOT NULL, ts timestamptz NOT NULL, value double precision NOT NULL,
    received_at timestamptz NOT NULL, seq bigint NOT NULL, source text NOT NULL, published_at timestamptz
) ON COMMIT DELETE ROWS; DELETE FROM stage
"""
# An interval is multiplied by a double, which holds microseconds until the year 2255: the seconds by themselves.
_INSTANT = "timestamptz 'epoch' + {0} / 1000000 * interval '1 second' + {0} %% 1000000 * interval '1 microsecond'"
_ARRAYS = f"""
(SELECT series_id, {_INSTANT.format("ts_us")} AS ts, value, {_INSTANT.format("received_us")} AS received_at, seq,
    source, {_INSTANT.format("published_us")} AS published_at
FROM unnest(%s::integer[], %s::bigint[], %s::double precision[], %s::bigint[], %s::bigint[], %s::text[], %s::bigint[])
AS arrays (series_id, ts_us, value, received_us, seq, source, published_us)) AS stage
"""  # noqa: S608 -- all of it is written here
_MERGE = """
INSERT INTO samples (series_id, ts, value, revision, published_at, received_at, source, instance_id, seq)
SELECT series_id, ts, value, 0, published_at, received_at, source, {me}, seq FROM {stage} ORDER BY series_id, ts
ON CONFLICT (series_id, ts) DO NOTHING
"""
_CONFLICTS = """
SELECT s.series_id, (extract(epoch from s.ts) * 1000000)::bigint FROM {stage} JOIN samples s USING (series_id, ts)
WHERE (s.instance_id <> {me} OR s.seq <> stage.seq) AND s.value <> stage.value
"""


def insert_samples(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, SampleRow]]) -> int:
    """Insert what is new; rows must have distinct keys. Returns how many went in."""
    if len(rows) > _ARRAY_ROWS:
        connection.exec_driver_sql(_STAGE)
        _copy(connection, "stage (series_id, ts, value, received_at, seq, source, published_at)", _sample, rows)
    return connection.exec_driver_sql(*_of_stage(_MERGE, instance_id, rows)).rowcount


def find_conflicts(
    connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, SampleRow]]
) -> list[SampleKey]:
    """The keys of the rows just offered whose recorded value is another."""
    return [(row[0], row[1]) for row in connection.exec_driver_sql(*_of_stage(_CONFLICTS, instance_id, rows))]


def _of_stage(
    query: str, instance_id: int, rows: Sequence[tuple[SampleKey, SampleRow]]
) -> tuple[str, tuple[list[Any], ...] | None]:
    """A query of the rows that are in the temporary table, or of the few that come with it; and its parameters."""
    if len(rows) > _ARRAY_ROWS:
        return query.format(stage="stage", me=instance_id), None
    flat = [(*key, row.value, row.received_us, row.seq, row.source, row.published_us) for key, row in rows]
    return query.format(stage=_ARRAYS, me=instance_id), tuple(map(list, zip(*flat, strict=True)))


def insert_payloads(connection: Connection, instance_id: int, payloads: Sequence[Payload]) -> None:
    columns = "instance_id, seq, received_at, row_count, published_at, connection_id, source, event, path, params, body"
    _copy(connection, f"payloads ({columns})", partial(_payload, instance_id), payloads)


def _copy(connection: Connection, target: str, packed: Callable[[Any], bytes], rows: Sequence[Any]) -> None:
    cursor = connection.connection.cursor()
    try:
        with cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(_HEADER)
            for some in _portions(rows):
                copy.write(b"".join(map(packed, some)))
            copy.write(_TRAILER)
    finally:
        cursor.close()


def _portions(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), _WRITE_ROWS):
        yield rows[start : start + _WRITE_ROWS]


# fields; then length and value of each: int4, timestamptz, float8, timestamptz, int8
_SAMPLE = struct.Struct(">hiiiqidiqiq")


def _sample(row: tuple[SampleKey, SampleRow]) -> bytes:
    (series_id, ts_us), (_, _, value, published_us, received_us, source, seq, _) = row
    return _SAMPLE.pack(
        7, 4, series_id, 8, ts_us - _2000_US, 8, value, 8, received_us - _2000_US, 8, seq
    ) + _SOURCES[source] + (_NULL if published_us is None else _stamp(published_us))  # fmt: skip


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">i", len(data)) + data


_SOURCES = {source: _text(source) for source in ("stream", "snapshot", "backfill")}


def _stamp(us: int | None) -> bytes:
    return _NULL if us is None else struct.pack(">iq", 8, us - _2000_US)


_PAYLOAD = struct.Struct(">hiiiqiqii")


def _payload(instance_id: int, payload: Payload) -> bytes:
    seq, origin, received_us, published_us, row_count, body = payload
    head = _PAYLOAD.pack(11, 4, instance_id, 8, seq, 8, received_us - _2000_US, 4, row_count)
    return b"".join((head, _stamp(published_us), _origin(origin), _text(body)))


@lru_cache(maxsize=64)
def _origin(origin: Origin) -> bytes:
    # Thousands of frames that follow each other have the same one.
    return b"".join(map(_text, origin))
