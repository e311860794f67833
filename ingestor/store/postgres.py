"""The bulk statements on PostgreSQL: binary COPY into a temporary table, and one merge."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat

from sqlalchemy import Connection

from ingestor.store.batch import Origin, Payload
from ingestor.store.values import SampleKey, Value

# COPY's binary format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_2000_US = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01
_WRITE_BYTES = 1 << 18

_STAGE = """
CREATE TEMPORARY TABLE IF NOT EXISTS stage (
    series_id integer NOT NULL, ts timestamptz NOT NULL, value double precision NOT NULL,
    received_at timestamptz NOT NULL, seq bigint NOT NULL, source text NOT NULL, published_at timestamptz
) ON COMMIT DELETE ROWS
"""
_MERGE = """
INSERT INTO samples (series_id, ts, value, revision, published_at, received_at, source, instance_id, seq)
SELECT series_id, ts, value, 0, published_at, received_at, source, %s, seq FROM stage ORDER BY series_id, ts
ON CONFLICT (series_id, ts) DO NOTHING
"""
_CONFLICTS = """
SELECT s.series_id, s.ts FROM stage JOIN samples s USING (series_id, ts)
WHERE (s.instance_id <> %s OR s.seq <> stage.seq) AND s.value <> stage.value
"""
_MICROSECONDS = "(extract(epoch from {}) * 1000000)::bigint"


def insert_samples(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, Value]]) -> int:
    """Insert what is new; rows must have distinct keys. Returns how many went in."""
    connection.exec_driver_sql(_STAGE)
    connection.exec_driver_sql("DELETE FROM stage")  # a try that was rolled back to a savepoint leaves none; be sure
    _copy(connection, "stage (series_id, ts, value, received_at, seq, source, published_at)", map(_sample, rows))
    return connection.exec_driver_sql(_MERGE, (instance_id,)).rowcount


def conflicts(connection: Connection, instance_id: int, rows: Sequence[tuple[SampleKey, Value]]) -> list[SampleKey]:
    """The keys of the rows just offered whose recorded value is another."""
    query = _CONFLICTS.replace("s.ts FROM", f"{_MICROSECONDS.format('s.ts')} FROM", 1)
    return [(row[0], row[1]) for row in connection.exec_driver_sql(query, (instance_id,))]


def insert_payloads(connection: Connection, instance_id: int, payloads: Iterable[Payload]) -> None:
    columns = "instance_id, seq, received_at, row_count, published_at, connection_id, source, event, path, params, body"
    _copy(connection, f"payloads ({columns})", map(_payload, repeat(instance_id), payloads))


def _copy(connection: Connection, target: str, rows: Iterable[bytes]) -> None:
    cursor = connection.connection.cursor()
    try:
        with cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)") as copy:
            for block in _blocks(chain((_HEADER,), rows, (_TRAILER,))):
                copy.write(block)
    finally:
        cursor.close()


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    # One write per row would cost more than the row.
    block = bytearray()
    for part in parts:
        block += part
        if len(block) >= _WRITE_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)


@lru_cache(maxsize=8)
def _sample_packer(source: str) -> struct.Struct:
    # fields; then length and value of each: int4, timestamptz, float8, timestamptz, int8, text
    return struct.Struct(f">hiiiqidiqiqi{len(source)}s")


def _sample(row: tuple[SampleKey, Value]) -> bytes:
    (series_id, ts_us), value = row
    head = _sample_packer(value.source).pack(
        7, 4, series_id, 8, ts_us - _2000_US, 8, value.value, 8, value.received_us - _2000_US, 8, value.seq,
        len(value.source), value.source.encode(),
    )  # fmt: skip
    return head + _stamp(value.published_us)


def _stamp(us: int | None) -> bytes:
    return _NULL if us is None else struct.pack(">iq", 8, us - _2000_US)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">i", len(data)) + data


_PAYLOAD = struct.Struct(">hiiiqiqii")


def _payload(instance_id: int, payload: Payload) -> bytes:
    head = _PAYLOAD.pack(11, 4, instance_id, 8, payload.seq, 8, payload.received_us - _2000_US, 4, payload.row_count)
    return b"".join((head, _stamp(payload.published_us), _origin(payload.origin), _text(payload.body)))


@lru_cache(maxsize=64)
def _origin(origin: Origin) -> bytes:
    # Thousands of frames that follow each other have the same one.
    return b"".join(map(_text, origin))
