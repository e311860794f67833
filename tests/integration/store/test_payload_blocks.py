"""Payloads written in blocks are read back as they were, through the view and by the readers of the program."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, select, text

from ingestor.core.times import to_datetime, to_us
from ingestor.pipeline.batch_builder import escape_unstorable
from ingestor.store import migrate, schema, views
from ingestor.store.engine import fetch_all, make_engine, transaction
from ingestor.store.read.payloads import read_payloads
from ingestor.store.write import payload_blocks, postgres_sql, sqlite_sql, window_strips
from ingestor.store.write.batch import Batch, Origin
from tests.support.entries import T0
from tests.support.hypothesis_steps import wanted_steps

SECOND = 1_000_000
ORIGINS = [Origin(f"c{n}", "stream", "res", "/real-time/crowd-sentiment", f'{{"period":"{n}"}}') for n in range(3)]


class Payload(NamedTuple):
    """A frame as it was received."""

    seq: int
    origin: Origin
    received_us: int
    published_us: int | None
    row_count: int
    body: str


def write(engine: Engine, payloads: Sequence[Payload], instance_id: int = 1) -> None:
    bulk: ModuleType = postgres_sql if engine.dialect.name == "postgresql" else sqlite_sql
    batch = Batch(first_seq=1, last_seq=0)
    for seq, origin, *columns in payloads:
        batch.payloads[origin].add(seq, *columns)
    with transaction(engine) as connection:
        bulk.insert_payloads(connection, instance_id, batch.payloads, ("DELETE FROM events WHERE seq = %s", (0,)))


def payload(seq: int, body: str = "[]", origin: Origin = ORIGINS[0], received_us: int = T0) -> Payload:
    return Payload(seq, origin, received_us, None, 1, body)


def read_view(engine: Engine) -> list[Payload]:
    c = views.payloads.c
    origin = [c[name] for name in Origin._fields]
    rows = fetch_all(engine, select(c.seq, c.received_at, c.published_at, c.row_count, c.body, *origin).order_by(c.seq))
    return [
        Payload(seq, Origin(*names), to_us(received), None if published is None else to_us(published), rows, body)
        for seq, received, published, rows, body, *names in rows
    ]


def read_stored(engine: Engine, first_seq: int, last_seq: int) -> list[tuple[int, int, str, str]]:
    found = read_payloads(partial(fetch_all, engine), 1, first_seq, last_seq)
    return [(row.seq, to_us(row.received_at), row.connection_id, row.body) for row in found]


def blocks(engine: Engine) -> list[tuple[int, int, int]]:
    c = schema.payload_blocks.c
    query = select(c.first_seq, c.last_seq, c.frame_count).order_by(c.first_seq)
    return [tuple(row) for row in fetch_all(engine, query)]


_bodies = st.text(st.characters(codec=None)) | st.sampled_from(
    [
        '[{"ticker":"A","ts":1},{"ticker":"A","ts":2}]',
        '[{"ticker":"A","ts":2},{"ticker":"A","ts":3},{"ticker":"A","ts":4}]',
        '{"results":[{"ticker":"A","ts":3},{"ticker":"A","ts":4}],"é":[{}]}',
        '[{"ticker":"💩","ts":1},{"ticker":"💩","ts":2}]',
        '[{"ticker":"💩","ts":2},{"ticker":"💩","ts":3}]',
        '[{"ticker":"A","ts":1}]',
        '[{"ticker":"B","ts":2}]',
        "\1\2",
        "",
        "\0",
        "\\u0000",
        "\ud83d",
        '"',
        "null",
        "[1, 2 ]",
    ]
)
_times = st.just(0) | st.integers(-SECOND, 3600 * SECOND) | st.just(-T0 - 1)  # the last is before 1970
_frames = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(ORIGINS), _times, st.none() | _times, st.integers(0, 2), _bodies),
    min_size=1,
    max_size=12,
)


@settings(max_examples=wanted_steps(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(_frames, st.sampled_from([1 << 20, 5]), st.sampled_from([16_384, 0]), st.booleans())
def test_payloads_are_read_as_they_were_written(
    engine: Engine, frames: list[tuple[int, Origin, int, int | None, int, str]], full: int, compacted: int, joined: bool
) -> None:
    seq, payloads = 0, []
    for step, origin, received, published, rows, body in frames:
        seq += step
        published_us = None if published is None else T0 + published
        payloads.append(Payload(seq, origin, T0 + received, published_us, rows, escape_unstorable(body)))
    with transaction(engine) as connection:
        connection.execute(delete(schema.payload_blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_blocks, "BLOCK_CHARACTERS", full)
        patch.setattr(payload_blocks, "COMPACT_CHARACTERS", compacted)
        if joined:
            patch.setattr(window_strips, "MIN_CHARACTERS", 0)
            patch.setattr(window_strips, "_LEAST_GAIN", 0)
        write(engine, payloads)
    assert read_view(engine) == payloads
    stored = [(item.seq, item.received_us, item.origin.connection_id, item.body) for item in payloads]
    assert read_stored(engine, 1, seq) == stored
    assert read_stored(engine, 2, seq - 1) == [item for item in stored if 2 <= item[0] < seq]


def test_connections_that_take_turns_have_a_block_each(engine: Engine) -> None:
    write(engine, [payload(seq, origin=ORIGINS[seq % 2]) for seq in range(1, 11)])
    assert blocks(engine) == [(1, 9, 5), (2, 10, 5)]
    assert [seq for seq, *_ in read_stored(engine, 1, 10)] == list(range(1, 11))


def test_block_ends_where_it_is_full(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_blocks, "BLOCK_CHARACTERS", 100)
    write(engine, [payload(seq, "x" * 40) for seq in range(1, 8)] + [payload(8, "x" * 500), payload(9)])
    assert blocks(engine) == [(1, 3, 3), (4, 6, 3), (7, 8, 2), (9, 9, 1)]


def test_long_text_is_read_as_it_was(engine: Engine) -> None:
    long = '["\N{PILE OF POO}\\"' + "a" * (3 << 20)
    write(engine, [payload(1, long), payload(2)])
    assert [(item.seq, item.body) for item in read_view(engine)] == [(1, long), (2, "[]")]
    assert [body for *_, body in read_stored(engine, 1, 2)] == [long, "[]"]


def test_readers_fetch_only_blocks_of_the_range(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_blocks, "BLOCK_CHARACTERS", 1)
    committed = {"instance_id": 1, "committed_at": to_datetime(T0)}
    with transaction(engine) as connection:
        ledger = [committed | {"first_seq": seq, "last_seq": seq + 9} for seq in range(1, 100, 10)]
        connection.execute(insert(schema.batches), ledger)
    write(engine, [payload(seq) for seq in range(1, 101)])
    write(engine, [payload(seq) for seq in range(1, 101)], instance_id=2)
    fetched: list[int] = []

    def fetch(query: object) -> Sequence[object]:
        page = fetch_all(engine, query)  # type: ignore[arg-type]
        fetched.extend(block.first_seq for block in page)
        return page

    assert [item.seq for item in read_payloads(fetch, 1, 42, 44)] == [42, 43, 44]
    assert fetched == [42, 43, 44]


def test_view_names_the_block_of_each_payload(engine: Engine) -> None:
    write(engine, [payload(seq, f"[{seq}]", ORIGINS[seq % 2]) for seq in (1, 2, 3, 5, 8)])
    query = text(
        "SELECT seq, body FROM payloads WHERE instance_id = 1 AND first_seq <= 5 AND last_seq >= 5 AND seq = 5"
    )
    assert [tuple(row) for row in fetch_all(engine, query)] == [(5, "[5]")]
    ends = text("SELECT seq, first_seq, last_seq FROM payloads ORDER BY seq")
    assert [tuple(row) for row in fetch_all(engine, ends)] == [(1, 1, 5), (2, 2, 8), (3, 1, 5), (5, 1, 5), (8, 2, 8)]


def test_sqlite_stores_once_what_is_repeated(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/x.db")
    migrate.upgrade(engine)
    rows = [
        f'[{{"ticker":"T{n % 50}","ts":"2026-11-30T07:0{n % 10}:00Z","average_sentiment":0.{n}}}]' for n in range(500)
    ]
    payloads = [payload(seq, body, ORIGINS[seq % 2]) for seq, body in enumerate(rows, 1)]
    write(engine, payloads)
    assert read_view(engine) == payloads
    assert [body for *_, body in read_stored(engine, 1, 500)] == rows
    [(stored,)] = fetch_all(engine, text("SELECT sum(length(frames) + length(pieces)) FROM payload_blocks"))
    assert stored < sum(map(len, rows)) / 3
    engine.dispose()


@pytest.mark.parametrize("frames_a_batch", [40, 1])
def test_sqlite_stores_once_what_is_repeated_in_windows(tmp_path: Path, frames_a_batch: int) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/x.db")
    migrate.upgrade(engine)
    row_ = '{{"ts":"2026-11-30T07:{:02}:00Z","ticker":"T{}","average_sentiment":"0.{:04}"}}'
    windows = [f"[{','.join(row_.format(59 - n, ticker, n * ticker) for n in range(60))}]" for ticker in range(10, 50)]
    payloads = [payload(seq, body)._replace(row_count=60) for seq, body in enumerate(windows, 1)]
    for start in range(0, 40, frames_a_batch):
        write(engine, payloads[start : start + frames_a_batch])
    assert read_view(engine) == payloads
    assert [body for *_, body in read_stored(engine, 1, 40)] == windows
    [(stored,)] = fetch_all(engine, text("SELECT sum(length(frames) + length(pieces)) FROM payload_blocks"))
    assert stored < sum(map(len, windows)) / 3
    engine.dispose()


def rolling_windows(count: int) -> list[Payload]:
    """Windows of two tickers in turn, each of which has one row that the one before it has not."""
    row_ = '{{"ts":"2026-11-30T{:02}:{:02}:00Z","ticker":"T{}","average_sentiment":"0.{:04}"}}'
    bodies = []
    for number in range(count):
        rows = [row_.format(*divmod(minute, 60), number % 2, minute) for minute in range(number // 2, number // 2 + 60)]
        bodies.append(f"[{','.join(rows)}]")
    return [payload(seq, body)._replace(row_count=60) for seq, body in enumerate(bodies, 1)]


def test_rows_of_rolling_windows_are_stored_once(engine: Engine) -> None:
    payloads = rolling_windows(100)
    write(engine, payloads)
    assert read_view(engine) == payloads
    assert [body for *_, body in read_stored(engine, 1, 100)] == [item.body for item in payloads]
    [(stored,)] = fetch_all(engine, text("SELECT sum(length(frames) + length(body)) FROM payload_blocks"))
    rows_once = 2 * len(payloads[0].body) + 100 * len(payloads[0].body) / 60
    assert stored < rows_once + 100 * 40


@pytest.mark.postgres
def test_server_with_lz4_compresses_by_it(postgres_url: str) -> None:
    engine = make_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    migrate.upgrade(engine)
    has_lz4 = text("SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
    write(engine, [payload(seq, '[{"ticker":"AAPL","average_sentiment":0.5}]') for seq in range(1, 1001)])
    [(compression,)] = fetch_all(engine, text("SELECT pg_column_compression(frames) FROM payload_blocks"))
    assert compression == ("lz4" if list(fetch_all(engine, has_lz4)) == [(True,)] else "pglz")
    engine.dispose()
