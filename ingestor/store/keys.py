"""The rows that a list of keys names, as a condition that each database answers from its index, however full it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, func, select, tuple_

from ingestor.store.times import microseconds, text_time

KEYS_PER_QUERY = 500


def among(
    connection: Connection, columns: Sequence[Column[Any]], keys: Sequence[tuple[Any, ...]]
) -> ColumnElement[bool]:
    """Whether ``columns`` are one of ``keys``, of which there are at most ``KEYS_PER_QUERY``."""
    if connection.dialect.name != "sqlite":
        return tuple_(*columns).in_(keys)
    # As a list of VALUES, SQLite before 3.42 would compare it with every row of the table.
    given = func.json_each(json.dumps(keys, ensure_ascii=False, default=_text)).table_valued("value").c.value
    return tuple_(*columns).in_(select(*(func.json_extract(given, f"$[{index}]") for index in range(len(columns)))))


def _text(at: datetime) -> str | None:
    return text_time(microseconds(at))
