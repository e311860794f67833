"""The view `history`, `as_of` and `newest`: what was known when, compared with a computation in Python; and plans."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

import pytest
from sqlalchemy import Engine, func, insert, or_, select, text

from ingestor.provider.rest_api import REQUEST_SECONDS
from ingestor.store import schema, views
from tests.support.query_plans import full_scans

from .row_factory import Database, at
from .test_views import SINGLE_FEEDS

CROWD = ("crowd-sentiment", "crowd_sentiment")
WAIT = timedelta(seconds=REQUEST_SECONDS)
ONLY_POSTGRES = pytest.mark.parametrize(
    "migrated_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)
ONLY_SQLITE = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)


class Stored(NamedTuple):
    """A value of a ts, ranked: the current one is the last."""

    value: float
    received_at: datetime
    source: str
    instance_id: int
    seq: int

    @property
    def known_from(self) -> datetime:
        return self.received_at + (timedelta() if self.source == "stream" else WAIT)


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


def test_history_ends_a_value_when_the_next_one_is_known(db: Database) -> None:
    db.sample(*CROWD, "ON", "10:00", 0.25, table="sample_revisions", received_at=at("10:01:00.5"), seq=1)
    db.sample(*CROWD, "ON", "10:00", 0.5, revision=1, received_at=at("10:05"), source="backfill", seq=2)
    known = at("10:05") + WAIT
    assert db.read(views.history) == [
        (*CROWD, "ON", "", at("10:00"), 0.25, at("10:01:00.5"), known, "stream", 1, 1, 1),
        (*CROWD, "ON", "", at("10:00"), 0.5, known, None, "backfill", 1, 2, 1),
    ]


def test_history_leaves_out_what_was_never_current(db: Database) -> None:
    db.sample(*CROWD, "ON", "10:00", 0.25, table="sample_revisions", received_at=at("10:02"), source="backfill")
    db.sample(*CROWD, "ON", "10:00", 0.75, table="sample_revisions", revision=1, received_at=at("10:03"))
    db.sample(*CROWD, "ON", "10:00", 0.5, revision=2, received_at=at("10:03"))
    assert db.read(views.history, "value", "known_until") == [(0.5, None)]


@pytest.mark.parametrize("seed", range(5))
def test_known_values_are_the_last_that_had_come(db: Database, engine: Engine, seed: int) -> None:
    pick = random.Random(seed)
    stored = {at("10:00") + timedelta(minutes=minute): random_values(pick, minute) for minute in range(12)}
    write(db, stored)
    moments = {at("09:59"), at("11:00")}
    for value in (value for values in stored.values() for value in values):
        edge = value.known_from
        moments |= {edge - timedelta(microseconds=1), edge, edge + timedelta(microseconds=1)}
    for moment in sorted(moments):
        expected = {
            ts: max(known, key=values.index).value
            for ts, values in stored.items()
            if (known := [value for value in values if value.known_from <= moment])
        }
        assert known_at(engine, moment) == expected, moment


@ONLY_POSTGRES
@pytest.mark.parametrize("seed", range(5))
def test_known_at_finds_the_newest_row_of_as_of(db: Database, engine: Engine, seed: int) -> None:
    pick = random.Random(seed)
    write(db, {at("10:00") + timedelta(minutes=minute): random_values(pick, minute) for minute in range(12)})
    newest = text(
        f"SELECT ts, value, known_from, known_until, seq FROM as_of(:moment) WHERE {POINT}"
        " AND ts <= :moment AND ts >= :moment - interval '4 minutes' ORDER BY ts DESC LIMIT 1"
    )
    by_function = text(
        "SELECT ts, value, known_from, known_until, seq"
        " FROM known_at('crowd-sentiment', 'crowd_sentiment', 'ON', :moment, interval '4 minutes')"
    )
    found = []
    with engine.connect() as connection:
        for seconds in range(0, 1500, 15):
            moment = {"moment": at("10:00") + timedelta(seconds=seconds)}
            found.append(connection.execute(by_function, moment).all())
            assert found[-1] == connection.execute(newest, moment).all()
    assert [] in found and len({row.seq for rows in found for row in rows}) > 1
    assert any(row.known_until for rows in found for row in rows)


def random_values(pick: random.Random, minute: int) -> list[Stored]:
    values = [
        Stored(
            number / 8,
            at("10:00") + timedelta(seconds=minute * 60 + pick.randrange(0, 360, 30) + pick.choice((0, 0.25))),
            pick.choice(["stream", "stream", "snapshot", "backfill"]),
            pick.randrange(1, 3),
            pick.randrange(1, 4),
        )
        for number in range(pick.randrange(1, 6))
    ]
    current = pick.randrange(len(values)) if pick.random() < 0.2 else None
    ranked = sorted(values, key=lambda value: (value.received_at, value.instance_id, value.seq))
    if current is not None:  # such as after a clock that was set back
        ranked.append(ranked.pop(current))
    return ranked


def write(db: Database, stored: dict[datetime, list[Stored]]) -> None:
    db.sample(*CROWD, "OTHER", "10:00", 9.0)
    db.sample(*CROWD, "ON", "09:00", 0.0, received_at=at("23:00"))
    for ts, (*others, current) in stored.items():
        row = {"series_id": 2, "ts": ts}
        revisions = [row | {"revision": number} | value._asdict() for number, value in enumerate(others)]
        with db.engine.begin() as connection:
            connection.execute(insert(schema.samples), [row | {"revision": len(others)} | current._asdict()])
            if revisions:
                connection.execute(insert(schema.sample_revisions), revisions)


def known_at(engine: Engine, moment: datetime) -> dict[datetime, float]:
    """Return what was known of ON, by the view, and on PostgreSQL by the function as well."""
    c = views.history.c
    is_known = (c.known_from <= moment, or_(c.known_until > moment, c.known_until.is_(None)))
    with engine.connect() as connection:
        rows = connection.execute(select(c.ts, c.value).where(c.ticker == "ON", *is_known)).all()
        if engine.dialect.name == "postgresql":
            h = func.as_of(moment).table_valued("ticker", "ts", "value")
            by_function = select(h.c.ts, h.c.value).where(h.c.ticker == "ON")
            assert sorted(connection.execute(by_function).all()) == sorted(rows)
    assert len({row.ts for row in rows}) == len(rows)
    return {row.ts: row.value for row in rows}


ON = "'ON'"
POINT = "feed = 'crowd-sentiment' AND metric = 'crowd_sentiment' AND ticker = 'ON' AND user_id = ''"
RANGE = "ts > '2024-03-10 09:50:00' AND ts <= '2024-03-10 10:00:00'"


def plan(engine: Engine, query: str) -> list[str]:
    explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # which would be faster for a few rows
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        return [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {query}")]


def none_with(steps: Iterable[str], *words: str) -> bool:
    return not [step for step in steps if any(word in step for word in words)]


@pytest.mark.parametrize("condition", [POINT, f"{POINT} AND {RANGE}"])
def test_history_of_a_ticker_is_read_by_index(engine: Engine, condition: str) -> None:
    query = f"SELECT ts, value FROM history WHERE {condition} AND known_from < '2024-03-10 10:00:00'"
    assert full_scans(engine, (query, {}), "samples", "sample_revisions", "m", "r", "c", "l") == []
    if condition != POINT:
        conditions = [step for step in plan(engine, query) if "ts >" in step or "ts>" in step]
        assert len(conditions) == 2, conditions


@ONLY_POSTGRES
def test_as_of_is_part_of_the_query_that_calls_it(engine: Engine) -> None:
    steps = plan(engine, f"SELECT ts, value FROM as_of('2024-03-10 10:00:00') WHERE {POINT} AND {RANGE}")
    assert none_with(steps, "as_of", "Function")
    assert len([step for step in steps if "Index Cond" in step and "ts >" in step]) == 2, steps


@ONLY_POSTGRES
def test_newest_reads_backwards_without_a_sort(db: Database, engine: Engine) -> None:
    for minute in range(10, 20):
        for ticker in ("ON", "AAPL"):
            db.sample(*CROWD, ticker, f"10:{minute}", minute / 100)
    query = "SELECT ts, value FROM newest('crowd-sentiment', 'crowd_sentiment', 'ON', 3) ORDER BY ts DESC"
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    assert rows == [(at("10:19"), 0.19), (at("10:18"), 0.18), (at("10:17"), 0.17)]
    steps = plan(engine, query.removesuffix(" ORDER BY ts DESC"))
    assert any("Index Scan Backward using pk_samples" in step for step in steps), steps
    assert none_with(steps, "Sort", "newest")


@ONLY_POSTGRES
def test_functions_find_their_tables_from_another_search_path(db: Database, engine: Engine) -> None:
    db.sample(*CROWD, "ON", "10:00", 0.25)
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL search_path = pg_catalog"))
        newest = text("SELECT value FROM public.newest('crowd-sentiment', 'crowd_sentiment', 'ON', 3)")
        assert connection.execute(newest).scalars().all() == [0.25]
        known = text("SELECT value FROM public.as_of('2024-03-10 10:00:00+00')")
        assert connection.execute(known).scalars().all() == [0.25]


@ONLY_SQLITE
@pytest.mark.parametrize(
    "query",
    [
        *(f"SELECT ts, {column} FROM {view.name} WHERE ticker = 'ON'" for _, _, view, column in SINGLE_FEEDS),
        f"SELECT ts, value FROM observations WHERE {POINT}",
        f"SELECT ts, value FROM history WHERE {POINT} AND known_from < '2024' AND known_until > '2024'",
        f"SELECT (SELECT ts FROM history WHERE {POINT.replace(ON, 'p.ticker')}",
    ],
)
def test_sqlite_reads_the_newest_rows_of_a_ticker_backwards(engine: Engine, query: str) -> None:
    query += " ORDER BY ts DESC LIMIT 60"
    if "p.ticker" in query:  # of many pairs
        query += ") FROM (SELECT 'ON' AS ticker UNION SELECT 'A') p"
    steps = plan(engine, query)
    assert none_with(steps, "TEMP B-TREE FOR ORDER BY", "AUTOMATIC")
    assert full_scans(engine, (query, {}), "m", "samples", "sample_revisions") == []


def test_feed_view_leaves_out_rows_of_users(db: Database) -> None:
    db.sample(*CROWD, "ON", "10:00", 0.25)
    db.sample(*CROWD, "ON", "10:00", 0.5, user_id="7")
    assert db.read(views.crowd_sentiment, "sentiment") == [(0.25,)]
