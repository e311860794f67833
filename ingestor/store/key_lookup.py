"""The rows that a list of keys names, as a condition that each database answers from its index, however full it is."""

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
    """Whether ``columns`` are one of ``keys``, of which there are at most ``KEYS_PER_QUERY``.

    Not by a list of VALUES: SQLite before 3.42 compares that with every row of the table, and PostgreSQL makes of it
    one condition for each key.
    """
    table = _arrays if connection.dialect.name == "postgresql" else _json
    return tuple_(*columns).in_(select(*table(columns, keys)))


def _arrays(columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]) -> Iterable[ColumnElement[Any]]:
    arrays = [
        literal(list(parts), ARRAY(one.type)) for one, parts in zip(columns, zip(*keys, strict=True), strict=True)
    ]
    return func.unnest(*arrays).table_valued(*(column(one.name, one.type) for one in columns)).render_derived().c


def _json(columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]) -> Iterable[ColumnElement[Any]]:
    key = func.json_each(json.dumps(keys, ensure_ascii=False, default=_text)).table_valued("value").c.value
    return [func.json_extract(key, f"$[{index}]") for index in range(len(columns))]


def _text(at: datetime) -> str | None:
    return to_sqlite_text(to_us(at))
