"""The form in which rows are copied and compared: that of PostgreSQL's binary COPY, whatever the database.

https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format": the number of fields, then length and value of
each. Equal rows have equal bytes. Only -0.0, which SQLite cannot store, is 0.0 here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, Table, Text

from ingestor.core.times import to_sqlite_text
from ingestor.store.schema import SourceCode, UtcDateTime

Key: TypeAlias = tuple[Any, ...]  # the values of a primary key, times as µs since the epoch

NULL = b"\xff\xff\xff\xff"
_2000 = datetime(2000, 1, 1)  # noqa: DTZ001 -- SQLite's text has no zone. PostgreSQL counts from here
_2000_US = 946_684_800_000_000
_MICROSECOND = timedelta(microseconds=1)
_INT2, _INT4, _INT8, _FLOAT8, _BOOL = (struct.Struct(f">i{code}") for code in "hiqd?")
_LENGTH = struct.Struct(">i")


class RowFormat:
    """Packs and unpacks the rows of one table, with all its columns in the order of the schema."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.columns = [column.name for column in table.columns]
        self.expressions = [_expression(column) for column in table.columns]
        fields = (f"'\\x{len(table.columns):04x}'::bytea", *map(_bytea_expression, table.columns))
        self.bytea = " || ".join(fields)  # the packed row in PostgreSQL's SQL
        self.key_columns = [column.name for column in table.primary_key.columns]
        codecs = [_codec(column) for column in table.columns]
        self._head = struct.pack(">h", len(codecs))
        self._pack = [pack for pack, _ in codecs]
        self._unpack = [unpack for _, unpack in codecs]
        self._key_fields = [self.columns.index(name) for name in self.key_columns]
        self._is_time = [isinstance(column.type, UtcDateTime) for column in table.columns]

    def pack(self, rows: Sequence[Sequence[Any]]) -> list[bytes]:
        """Pack rows as SQLite's driver returns them. By columns: by rows it takes three times as long."""
        columns = [pack(values) for pack, values in zip(self._pack, zip(*rows, strict=True), strict=False)]
        return [self._head + b"".join(fields) for fields in zip(*columns, strict=True)]

    def unpack(self, row: bytes) -> list[Any]:
        """Return the values of a row as SQLite's driver takes them."""
        return [
            to_sqlite_text(value) if is_time else value
            for is_time, value in zip(self._is_time, self._values(row), strict=True)
        ]

    def key(self, row: bytes) -> Key:
        """Return the primary key of a row."""
        values = self._values(row)
        return tuple(values[field] for field in self._key_fields)

    def _values(self, row: bytes) -> list[Any]:
        values, at = [], len(self._head)
        for unpack in self._unpack:
            (length,) = _LENGTH.unpack_from(row, at)
            at += _LENGTH.size
            values.append(None if length < 0 else unpack(row[at : at + length]))
            at += max(length, 0)
        return values

    def sqlite_key(self, key: Key) -> list[Any]:
        """Return a key as SQLite's driver takes it."""
        return [to_sqlite_text(key[n]) if self._is_time[field] else key[n] for n, field in enumerate(self._key_fields)]

    def postgres_key(self, key: Key) -> str:
        """Return a key of integers and times as SQL."""
        texts = [
            f"timestamptz '{_format_time(key[n])}'" if self._is_time[field] else str(int(key[n]))
            for n, field in enumerate(self._key_fields)
        ]
        return f"({', '.join(texts)})"

    def describe(self, key: Key) -> str:
        """Return a key for people: ``series_id 3, ts 2026-01-31 14:05:00``."""
        names = zip(self.key_columns, self.sqlite_key(key), strict=True)
        return ", ".join(f"{name} {value}" for name, value in names)


def _expression(column: Column[Any]) -> str:
    """Return the SQL that reads a column. It turns -0.0 into 0.0."""
    return f'"{column.name}" + 0 AS "{column.name}"' if isinstance(column.type, Double) else f'"{column.name}"'


def _bytea_expression(column: Column[Any]) -> str:
    """Return the SQL with which PostgreSQL packs a column: the length and the value."""
    name, kind = f'"{column.name}"', column.type
    if not isinstance(kind, UtcDateTime | SourceCode | Boolean | Double | Integer):
        packed = f"int4send(octet_length({name})) || textsend({name})"
    else:
        by_type = (
            (UtcDateTime, 8, "timestamptz_send({})"),
            (SourceCode, 2, "int2send({})"),
            (Boolean, 1, "boolsend({})"),
            (Double, 8, "float8send({} + 0)"),
            (BigInteger, 8, "int8send({})"),
            (Integer, 4, "int4send({})"),
        )
        length, send = next((length, send) for type_, length, send in by_type if isinstance(kind, type_))
        packed = f"'\\x{length:08x}'::bytea || {send.format(name)}"
    return f"CASE WHEN {name} IS NULL THEN '\\xffffffff'::bytea ELSE {packed} END" if column.nullable else packed


def _format_time(us: int) -> str:
    return f"{to_sqlite_text(us)}+00"


def _codec(column: Column[Any]) -> tuple[Callable[[Sequence[Any]], list[bytes]], Callable[[bytes], Any]]:
    """Return how to pack the values of a column, and how to unpack one."""
    pack, unpack = _value_codec(column)
    if column.nullable:
        return lambda values: [NULL if value is None else pack(value) for value in values], unpack
    return lambda values: [*map(pack, values)], unpack


def _value_codec(column: Column[Any]) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return _pack_time, _unpack_time
    if isinstance(kind, SourceCode):
        return partial(_INT2.pack, 2), _unpack_int
    if isinstance(kind, Boolean):
        return partial(_BOOL.pack, 1), (lambda data: data != b"\0")
    if isinstance(kind, Double):
        return partial(_FLOAT8.pack, 8), (lambda data: struct.unpack(">d", data)[0])
    if isinstance(kind, BigInteger):
        return partial(_INT8.pack, 8), _unpack_int
    if isinstance(kind, Integer):
        return partial(_INT4.pack, 4), _unpack_int
    # A name or term occurs in many rows; any other text, such as a body, must not stay in memory.
    return (_pack_text if isinstance(kind, Text) else lru_cache(1_000)(_pack_text)), (lambda data: data.decode())


def _unpack_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _pack_text(text: str) -> bytes:
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


@lru_cache(maxsize=20_000)  # rows share times: a sample has the receipt time of its payload
def _pack_time(text: str) -> bytes:
    return _INT8.pack(8, (datetime.fromisoformat(text) - _2000) // _MICROSECOND)


def _unpack_time(data: bytes) -> int:
    return _unpack_int(data) + _2000_US
