from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import create_engine

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
