"""Select rows by a list of keys, with a condition that each database evaluates by index, however large the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, column, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY

from ingestor.core.times import to_sqlite_text, to_us

KEYS_PER_QUERY = 500


def keys_in(
    connection: Connection, columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]
) -> ColumnElement[bool]:
    """Return the condition that ``columns`` equal one of ``keys``, at most ``KEYS_PER_QUERY``.

    Not a list of VALUES: SQLite before 3.42 compares it with every row of the table, and PostgreSQL turns it into one
    condition per key.
    """
    key_columns = _unnest if connection.dialect.name == "postgresql" else _json_each
    return tuple_(*columns).in_(select(*key_columns(columns, keys)))


def _unnest(columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]) -> Iterable[ColumnElement[Any]]:
    arrays = [literal(list(parts), ARRAY(c.type)) for c, parts in zip(columns, zip(*keys, strict=True), strict=True)]
    return func.unnest(*arrays).table_valued(*(column(c.name, c.type) for c in columns)).render_derived().c


def _json_each(columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]) -> Iterable[ColumnElement[Any]]:
    key = func.json_each(json.dumps(keys, ensure_ascii=False, default=_text)).table_valued("value").c.value
    return [func.json_extract(key, f"$[{index}]") for index in range(len(columns))]


def _text(at: datetime) -> str | None:
    return to_sqlite_text(to_us(at))
