"""Select rows by a list of keys, with a condition that each database evaluates by index, however large the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, column, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY

from ingestor.core.times import to_sqlite_text, to_us

KEYS_PER_QUERY = 500


def select_by_keys(
    connection: Connection, query: Select[Any], columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]
) -> Iterator[Any]:
    """Yield the rows of ``query`` whose ``columns`` equal one of ``keys``, with one query per ``KEYS_PER_QUERY``.

    The keys are not a list of VALUES: SQLite before 3.42 compares it with every row of the table, and PostgreSQL turns
    it into one condition per key.
    """
    key_columns = _unnest if connection.dialect.name == "postgresql" else _json_each
    for start in range(0, len(keys), KEYS_PER_QUERY):
        page = select(*key_columns(columns, keys[start : start + KEYS_PER_QUERY]))
        yield from connection.execute(query.where(tuple_(*columns).in_(page)))


def _unnest(columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]) -> Iterable[ColumnElement[Any]]:
    arrays = [literal(list(parts), ARRAY(c.type)) for c, parts in zip(columns, zip(*keys, strict=True), strict=True)]
    return func.unnest(*arrays).table_valued(*(column(c.name, c.type) for c in columns)).render_derived().c


def _json_each(columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]) -> Iterable[ColumnElement[Any]]:
    key = func.json_each(json.dumps(keys, ensure_ascii=False, default=_text)).table_valued("value").c.value
    return [func.json_extract(key, f"$[{index}]") for index in range(len(columns))]


def _text(at: datetime) -> str | None:
    return to_sqlite_text(to_us(at))
