"""The last observations, as they arrived."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ingestor.store.engine import make_engine
from ingestor.store.read.status import load_status
from ingestor.store.read.tail import latest_observations

from .row_factory import Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


@pytest.fixture
def flowing(db: Database) -> Database:
    """AAPL and TSLA by the minute from 10:00; each value is its minute. And a day-old value of AAPL that came last."""
    for minute in range(4):
        for second, ticker in enumerate(("AAPL", "TSLA")):
            received_at = at(f"10:0{minute}:0{second}")
            db.sample(*CROWD, ticker, f"10:0{minute}", float(minute), received_at=received_at)
    db.sample(*CROWD, "AAPL", "-1 10:00", -1.0, received_at=at("11:00"), source="backfill")
    return db


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({"limit": 3}, [("TSLA", 2), ("AAPL", 3), ("TSLA", 3)], id="the last few, oldest first"),
        pytest.param({"limit": 2, "ticker": "AAPL"}, [("AAPL", 2), ("AAPL", 3)], id="of one ticker"),
        pytest.param({"limit": 9, "ticker": "NONE"}, [], id="a ticker that there is not"),
    ],
)
def test_tail_shows_what_came_live(flowing: Database, asked: dict[str, object], expected: list[tuple]) -> None:
    assert [(row["ticker"], row["value"]) for row in latest_observations(flowing.engine, **asked)] == expected


def test_tail_is_not_led_astray_by_a_row_from_the_future(flowing: Database) -> None:
    flowing.sample(*CROWD, "WHEN", "+1 10:00", 9.0, received_at=at("10:02:30"))
    assert [row["ticker"] for row in latest_observations(flowing.engine, limit=4)] == ["TSLA", "WHEN", "AAPL", "TSLA"]


def test_tail_of_an_empty_database_is_empty(db: Database) -> None:
    assert latest_observations(db.engine, limit=5) == []


def test_what_reads_needs_no_right_to_write(flowing: Database, migrated_url: str) -> None:
    reader = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"), read_only=True)
    if reader.dialect.name == "postgresql":
        with reader.begin() as connection:
            connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    assert len(latest_observations(reader, limit=3)) == 3
    assert load_status(reader)["feeds"]
    reader.dispose()
