"""Read, compare and replace the rows of a key range, on SQLite and on PostgreSQL.

A range is everything after one key up to another one, each None where it has no limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection

from ingestor.store.copy.row_format import Key, RowFormat

RANGE_ROWS = 10_000
RANGE_BYTES = 4 << 20  # of texts: a payload may be several megabytes
_FETCH_ROWS = 500
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"


class RangeDigest(NamedTuple):
    """Number and hash of the rows of a range, in the order of their keys."""

    rows: int
    sha256: bytes


def digest_rows(rows: Iterable[bytes]) -> RangeDigest:
    """Hash packed rows."""
    count, digest = 0, hashlib.sha256()
    for row in rows:
        digest.update(row)
        count += 1
    return RangeDigest(count, digest.digest())


def digest_range(
    connection: Connection, form: RowFormat, after: Key | None, upto: Key | None, wanted: RangeDigest
) -> RangeDigest:
    """Hash the rows of a range where they are. If there are not as many as in ``wanted``, only count them."""
    where = _where(form, after, upto) if connection.dialect.name == "postgresql" else None
    if where is None:
        return digest_rows(_sqlite_rows(connection, form, after, upto))
    count = connection.exec_driver_sql(f"SELECT count(*) FROM {form.table.name}{where}").scalar_one()  # noqa: S608
    if count != wanted.rows or not count:
        return RangeDigest(count, b"" if count else digest_rows(()).sha256)
    order = _names(form.key_columns)
    query = f"SELECT sha256(string_agg({form.bytea}, ''::bytea ORDER BY {order})) FROM {form.table.name}{where}"  # noqa: S608
    return RangeDigest(count, bytes(connection.exec_driver_sql(query).scalar_one()))


def read_range(connection: Connection, form: RowFormat, after: Key | None) -> list[bytes]:
    """Return the first rows after a key, packed: at most ``RANGE_ROWS``, and about ``RANGE_BYTES``."""
    if connection.dialect.name == "postgresql":
        return list(_copy_out(connection, _limited_query(form, after)))
    rows, size = [], 0
    for row in _sqlite_rows(connection, form, after, None):
        rows.append(row)
        size += len(row)
        if len(rows) == RANGE_ROWS or size >= RANGE_BYTES:
            break
    return rows


def is_full(rows: Sequence[bytes]) -> bool:
    """Return whether a range of ``read_range`` reached a limit, so that there may be more rows."""
    return len(rows) >= RANGE_ROWS or sum(map(len, rows)) >= RANGE_BYTES


def read_rows(
    connection: Connection, form: RowFormat, after: Key | None = None, upto: Key | None = None
) -> Iterator[bytes]:
    """Yield the rows of a range, packed, in the order of their keys. Read them to the end."""
    if connection.dialect.name == "postgresql":
        return _copy_out(connection, f"{_select(form)}{_where(form, after, upto)} ORDER BY {_names(form.key_columns)}")
    return _sqlite_rows(connection, form, after, upto)


def delete_range(connection: Connection, form: RowFormat, after: Key | None, upto: Key | None) -> None:
    """Delete the rows of a range."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # may be all that retention has deleted since
        connection.exec_driver_sql(f"DELETE FROM {form.table.name}{_where(form, after, upto)}")  # noqa: S608
    else:
        condition, values = _sqlite_where(form, after, upto)
        connection.exec_driver_sql(f"DELETE FROM {form.table.name}{condition}", tuple(values))  # noqa: S608


def insert_rows(connection: Connection, form: RowFormat, rows: list[bytes]) -> None:
    """Insert packed rows."""
    target = f"{form.table.name} ({_names(form.columns)})"
    with closing(connection.connection.cursor()) as cursor:
        if connection.dialect.name == "postgresql":
            with cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(_COPY_HEADER)
                remaining = iter(rows)
                while page := list(islice(remaining, _FETCH_ROWS)):
                    copy.write(b"".join(page))
                copy.write(_COPY_TRAILER)
        else:
            marks = ", ".join("?" * len(form.columns))
            cursor.executemany(f"INSERT INTO {target} VALUES ({marks})", [*map(form.unpack, rows)])  # noqa: S608


# -- SQL. Names are those of the schema, and keys are integers and times.


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def _select(form: RowFormat) -> str:
    return f"SELECT {', '.join(form.expressions)} FROM {form.table.name}"  # noqa: S608


def _where(form: RowFormat, after: Key | None, upto: Key | None) -> str:
    limits = (("> ", after), ("<= ", upto))
    names = f"({_names(form.key_columns)})"
    conditions = [f"{names} {sign}{form.postgres_key(key)}" for sign, key in limits if key is not None]
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _limited_query(form: RowFormat, after: Key | None) -> str:
    order = _names(form.key_columns)
    page = f"{_select(form)}{_where(form, after, None)} ORDER BY {order} LIMIT {RANGE_ROWS}"
    if "body" not in form.columns:
        return page
    texts = " + ".join(f"coalesce(octet_length({name}), 0)" for name in ("body", "frames") if name in form.columns)
    size = f"sum({texts}) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) - ({texts})"
    return (
        f"SELECT {_names(form.columns)} FROM (SELECT *, {size} AS size_before FROM ({page}) AS page) AS sized"  # noqa: S608
        f" WHERE size_before < {RANGE_BYTES} ORDER BY {order}"
    )


def _copy_out(connection: Connection, query: str) -> Iterator[bytes]:
    """Yield the rows of a query. Each message of the server has one row; the first one begins with the header."""
    cursor: Any = connection.connection.cursor()
    with closing(cursor), cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)") as copy:
        skip = len(_COPY_HEADER)
        for message in copy:
            row, skip = bytes(message[skip:]), 0
            if row not in (b"", _COPY_TRAILER):
                yield row


def _sqlite_where(form: RowFormat, after: Key | None, upto: Key | None) -> tuple[str, list[Any]]:
    limits = [(sign, key) for sign, key in ((">", after), ("<=", upto)) if key is not None]
    marks = f"({', '.join('?' * len(form.key_columns))})"
    conditions = [f"({_names(form.key_columns)}) {sign} {marks}" for sign, _ in limits]
    values = [value for _, key in limits for value in form.sqlite_key(key)]
    return f" WHERE {' AND '.join(conditions)}" if conditions else "", values


def _sqlite_rows(connection: Connection, form: RowFormat, after: Key | None, upto: Key | None) -> Iterator[bytes]:
    condition, values = _sqlite_where(form, after, upto)
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(f"{_select(form)}{condition} ORDER BY {_names(form.key_columns)}", values)
        while page := cursor.fetchmany(_FETCH_ROWS):
            yield from form.pack(page)
