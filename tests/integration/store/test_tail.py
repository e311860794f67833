"""The latest observations, in the order of their arrival."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ingestor.store.engine import make_engine
from ingestor.store.read.status_queries import load_status
from ingestor.store.read.tail import latest_observations

from .row_factory import Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


@pytest.fixture
def filled_db(db: Database) -> Database:
    """AAPL and TSLA each minute from 10:00, with the minute as the value, and then a backfilled value of AAPL."""
    for minute in range(4):
        for second, ticker in enumerate(("AAPL", "TSLA")):
            received_at = at(f"10:0{minute}:0{second}")
            db.sample(*CROWD, ticker, f"10:0{minute}", float(minute), received_at=received_at)
    db.sample(*CROWD, "AAPL", "-1 10:00", -1.0, received_at=at("11:00"), source="backfill")
    return db


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param({"limit": 3}, [("TSLA", 2), ("AAPL", 3), ("TSLA", 3)], id="last ones, oldest first"),
        pytest.param({"limit": 2, "ticker": "AAPL"}, [("AAPL", 2), ("AAPL", 3)], id="one ticker"),
        pytest.param({"limit": 9, "ticker": "NONE"}, [], id="unknown ticker"),
    ],
)
def test_latest_observations_omit_backfilled_value(
    filled_db: Database, arguments: dict[str, object], expected: list[tuple]
) -> None:
    assert [(row["ticker"], row["value"]) for row in latest_observations(filled_db.engine, **arguments)] == expected


def test_latest_observations_include_value_with_future_ts(filled_db: Database) -> None:
    filled_db.sample(*CROWD, "NEXT", "+1 10:00", 9.0, received_at=at("10:02:30"))
    assert [row["ticker"] for row in latest_observations(filled_db.engine, limit=4)] == ["TSLA", "NEXT", "AAPL", "TSLA"]


def test_latest_observations_of_empty_database_are_empty(db: Database) -> None:
    assert latest_observations(db.engine, limit=5) == []


def test_read_queries_need_no_write_privilege(filled_db: Database, migrated_url: str) -> None:
    reader = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"), read_only=True)
    if reader.dialect.name == "postgresql":
        with reader.begin() as connection:
            connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    assert len(latest_observations(reader, limit=3)) == 3
    assert load_status(reader)["feeds"]
    reader.dispose()
