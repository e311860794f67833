"""Read the samples of many series as columns, page by page, without an object for each row where the driver allows it.

Each column is a memoryview, in the order of the series and of ts. Times are µs since 2000-01-01 UTC, as PostgreSQL
counts them; ``NULL_TIME`` stands for NULL.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NoReturn, TypeAlias

from sqlalchemy import Connection

from ingestor.core.times import parse_time, to_datetime, to_sqlite_text, to_us

Columns: TypeAlias = dict[str, "memoryview[Any]"]

PAGE_ROWS = 50_000
EPOCH_US = 946_684_800_000_000  # 2000-01-01
NULL_TIME = -(2**63)  # PostgreSQL sends -infinity as this

# Names, and types as of `array` and `memoryview.cast`. `series` is an index into the list of series.
TYPES: dict[str, Literal["i", "q", "d", "h"]] = {
    "series": "i",
    "ts": "q",
    "value": "d",
    "revision": "i",
    "published_at": "q",
    "received_at": "q",
    "source": "h",
    "instance_id": "i",
    "seq": "q",
}

# A binary COPY for each page. LATERAL with ORDER BY keeps the order of the series, as long as no parallel workers are
# used. No statement is open while the caller writes a page: a slow reader of the output would exceed its timeout.
_POSTGRES = """
COPY (
    SELECT k.number::integer + %s, m.*
    FROM unnest(%s::integer[], %s::timestamptz[], %s::integer[]) WITH ORDINALITY
        AS k (series_id, after_ts, after_revision, number)
    CROSS JOIN LATERAL (
        SELECT ts, value, revision, COALESCE(published_at, '-infinity'), received_at, source, instance_id, seq
        FROM {source} s
        WHERE s.series_id = k.series_id AND (s.ts, s.revision) > (k.after_ts, k.after_revision)
            AND s.ts < %s::timestamptz
        ORDER BY s.ts, s.revision LIMIT %s) m
    LIMIT %s
) TO STDOUT (FORMAT BINARY)
"""
_SQLITE = """
SELECT ?, ts, value, revision, published_at, received_at, source, instance_id, seq
FROM {source} s WHERE series_id = ? AND ts >= ? AND ts < ? ORDER BY ts, revision
"""

# The function and the view are part of the query, so that the conditions on series and ts reach the indexes.
_KNOWN = """
(SELECT series_id, ts, value, 0 AS revision, {null} AS published_at, known_from AS received_at,
    CAST(CASE source WHEN 'stream' THEN 1 WHEN 'snapshot' THEN 2 ELSE 3 END AS smallint) AS source, instance_id, seq
FROM {known})
"""
_SQLITE_KNOWN = "history WHERE known_from <= '{0}' AND (known_until > '{0}' OR known_until IS NULL)"

# A row of binary COPY: the number of fields, and of each its length and value, all big-endian. No field is NULL, so all
# rows have the same length.
_HEADER_BYTES = 19
_TRAILER_BYTES = 2
_SIZES = {name: array(code).itemsize for name, code in TYPES.items()}
_ROW_BYTES = 2 + sum(4 + size for size in _SIZES.values())


def known_values(moment: datetime, *, is_postgres: bool) -> str:
    """Return SQL for the values that were known at a moment, to read instead of a table."""
    if is_postgres:
        return _KNOWN.format(null="NULL::timestamptz", known=f"as_of('{moment.isoformat()}')")
    return _KNOWN.format(null="NULL", known=_SQLITE_KNOWN.format(to_sqlite_text(to_us(moment))))


def read_postgres(
    connection: Connection, source: str, series_ids: Sequence[int], since: datetime | None, until: datetime | None
) -> Iterator[Columns]:
    """Yield the samples of the series, at most ``PAGE_ROWS`` at a time."""
    after: list[str] = [since.isoformat() if since else "-infinity"] * len(series_ids)
    revisions = [-1] * len(series_ids)
    end = until.isoformat() if until else "infinity"
    start = 0
    connection.exec_driver_sql("SET LOCAL jit = off")
    connection.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")
    while start < len(series_ids):
        rest = (list(series_ids[start:]), after[start:], revisions[start:])
        parameters = (start - 1, *rest, end, PAGE_ROWS, PAGE_ROWS)
        columns = _unpack(_copy(connection, _POSTGRES.format(source=source), parameters))
        if rows := len(columns["series"]):
            yield columns
        if rows < PAGE_ROWS:
            return
        start = columns["series"][-1]
        after[start] = to_datetime(columns["ts"][-1] + EPOCH_US).isoformat()
        revisions[start] = columns["revision"][-1]


def _copy(connection: Connection, statement: str, parameters: tuple[Any, ...]) -> bytearray:
    data = bytearray()
    with closing(connection.connection.cursor()) as cursor, cursor.copy(statement, parameters) as copy:
        server = copy.connection.pgconn
        while row := copy.read():  # waits for the server
            data += row
            # What has arrived is taken from libpq, in half the time of a read for each row. After the last row only
            # the driver may ask.
            while len(row) >= _ROW_BYTES:
                size, row = server.get_copy_data(1)
                if size < 0:
                    _raise_failure(server)
                data += row
    return data


def _raise_failure(server: Any) -> NoReturn:
    """Raise what ended a COPY before its last row, and leave nothing of it to the driver."""
    from psycopg.errors import error_from_result

    failure = server.get_result()
    while server.get_result():
        pass
    raise error_from_result(failure)


def _unpack(data: bytearray) -> Columns:
    """Return the columns of binary COPY: byte by byte, which is as fast as it is with numpy."""
    rows = (len(data) - _HEADER_BYTES - _TRAILER_BYTES) // _ROW_BYTES
    columns: Columns = {}
    at = _HEADER_BYTES + 2
    for name, size in _SIZES.items():
        at += 4
        column = bytearray(size * rows)
        for byte in range(size):
            place = byte if sys.byteorder == "big" else size - 1 - byte
            column[place::size] = data[at + byte : -_TRAILER_BYTES : _ROW_BYTES]
        columns[name] = memoryview(column).cast(TYPES[name])
        at += size
    return columns


def read_sqlite(
    connection: Connection, source: str, series_ids: Sequence[int], since: datetime | None, until: datetime | None
) -> Iterator[Columns]:
    """Yield the samples of the series, at most ``PAGE_ROWS`` at a time."""
    span = (to_sqlite_text(to_us(since)) if since else "", to_sqlite_text(to_us(until)) if until else ":")
    with closing(connection.connection.cursor()) as cursor:
        rows = (
            row
            for number, series_id in enumerate(series_ids)
            for row in cursor.execute(_SQLITE.format(source=source), (number, series_id, *span))
        )
        while page := list(islice(rows, PAGE_ROWS)):
            yield _columns(page)


def _columns(rows: list[Any]) -> Columns:
    columns: Columns = {}
    for (name, code), values in zip(TYPES.items(), zip(*rows, strict=True), strict=True):
        is_time = name == "ts" or name.endswith("_at")
        columns[name] = memoryview(array(code, map(_parse_us, values) if is_time else values))
    return columns


def _parse_us(text: str | None) -> int:
    if text is None:
        return NULL_TIME
    return _parse_second_us(text[:19]) + (int(text[20:].ljust(6, "0")) if len(text) > 19 else 0)


@lru_cache(maxsize=100_000)
def _parse_second_us(text: str) -> int:
    return to_us(parse_time(text)) - EPOCH_US
