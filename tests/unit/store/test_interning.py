from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine

from ingestor.errors import DatabaseUnavailable
from ingestor.store import schema
from ingestor.store.write.interning import InternTable

KEY = ("feed", "metric", "ticker", "user_id")
Key = tuple[str, str, str, str]


def keys(start: int, count: int) -> list[Key]:
    return [("f", "m", f"T{number:07}", "") for number in range(start, start + count)]


def columns(key: Key) -> dict[str, Any]:
    return dict(zip(KEY, key, strict=True)) | {"first_seen_at": datetime.now(UTC)}


def test_full_cache_makes_room_in_linear_time() -> None:
    engine = create_engine("sqlite://")
    schema.metadata.create_all(engine)
    table: InternTable[Key] = InternTable(schema.series, KEY, 12_000)
    table.intern(engine.begin, keys(0, 12_000), columns)
    started = time.process_time()
    found = table.intern(engine.begin, keys(11_999, 2), columns)  # one cached, one that needs room
    assert time.process_time() - started < 1.0
    assert sorted(found.values()) == [12_000, 12_001]
    assert len(table._ids) <= 12_000
    engine.dispose()


def test_requested_keys_are_not_evicted() -> None:
    engine = create_engine("sqlite://")
    schema.metadata.create_all(engine)
    table: InternTable[Key] = InternTable(schema.series, KEY, 4)
    first = table.intern(engine.begin, keys(0, 4), columns)
    assert table.intern(engine.begin, keys(0, 6), columns).items() >= first.items()
    engine.dispose()


def test_ids_of_rolled_back_transaction_are_not_cached() -> None:
    engine = create_engine("sqlite://")
    schema.metadata.create_all(engine)

    @contextmanager
    def begin_without_commit() -> Iterator[Connection]:
        with engine.connect() as connection:
            yield connection
        raise DatabaseUnavailable("commit failed")

    table: InternTable[Key] = InternTable(schema.series, KEY, 4)
    lost, other = keys(0, 1), keys(1, 1)
    with pytest.raises(DatabaseUnavailable):
        table.intern(begin_without_commit, lost, columns)
    ids = {**table.intern(engine.begin, other, columns), **table.intern(engine.begin, lost, columns)}
    assert sorted(ids.values()) == [1, 2]
    engine.dispose()
