"""What is read without a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ingestor.errors import DatabaseUnavailable
from ingestor.store.engine import connect
from ingestor.store.query import coverage_since, status, tail

from .rows import Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


def test_status_of_an_empty_database_is_empty(db: Database) -> None:
    assert status(db.engine) == {"instances": [], "feeds": [], "states": [], "dead": []}


def test_status_sums_the_ledger_of_each_instance(db: Database) -> None:
    db.instance(1, "10:00", position=20, name="one", version="1.0")
    db.instance(2, None, name="two")
    for first_seq, clock in ((1, "09:00"), (11, "09:30")):
        counts = {"frames": 9, "facts": 1, "row_count": 7, "new_rows": 4, "revised_rows": 2, "dead_rows": 1}
        db.add("batches", instance_id=1, first_seq=first_seq, last_seq=first_seq + 9, committed_at=at(clock), **counts)
    one, two = status(db.engine)["instances"]
    assert one == {
        "instance_id": 1,
        "name": "one",
        "version": "1.0",
        "position": 20,
        "started_at": at("-1 00:00"),
        "heartbeat_at": at("10:00"),
        "committed_at": at("09:30"),
        "frames": 18,
        "facts": 2,
        "row_count": 14,
        "new_rows": 8,
        "revised_rows": 4,
        "duplicate_rows": 0,
        "dead_frames": 0,
        "dead_rows": 2,
    }
    assert (two["name"], two["frames"], two["heartbeat_at"], two["committed_at"]) == ("two", 0, None, None)


def test_status_knows_feeds_states_and_letters(db: Database) -> None:
    db.sample(*CROWD, "AAPL", "10:00", 0.5, received_at=at("10:00:05"))
    db.sample(*CROWD, "TSLA", "10:01", 0.5, received_at=at("10:01:05"))
    db.state(1, 1, "live", "10:00", "10:30")
    db.state(1, 1, "refused", "10:30", None)
    db.state(2, 1, "live", "10:00", None)
    for seq, retried in ((1, None), (2, at("11:00"))):
        db.add("dead_letters", instance_id=1, seq=seq, received_at=at("10:00"), stage="decode", retried_at=retried)
    found = status(db.engine)
    assert found["feeds"] == [{"feed": CROWD[0], "series": 2, "ts": at("10:01"), "received_at": at("10:01:05")}]
    assert found["states"] == [
        {"instance_id": 1, "state": "live", "subscriptions": 1},
        {"instance_id": 1, "state": "refused", "subscriptions": 1},
    ]
    assert found["dead"] == [{"stage": "decode", "letters": 1}]


def test_coverage_tells_spans_that_several_share_as_one(db: Database) -> None:
    db.instance(1, "12:00")
    db.instance(2, "12:00")
    for number, ticker in enumerate(("AAPL", "TSLA"), 1):
        db.subscription(number, ticker)
        db.state(number, 1, "live", "08:00", "09:00")  # over before it is asked for
        db.state(number, 1, "disconnected", "09:00", "11:00", reason=f"closed, {ticker}")
        db.state(number, 1, "live", "11:00", None)  # open: up to the heartbeat
    db.subscription(3, "ON")
    db.state(3, 1, "stopped", "11:30", None)  # not asked for any more
    db.state(1, 2, "refused", "08:00", None)  # of another instance
    names = {"feed": "crowd-sentiment", "subscriptions": 2}
    spans = [
        names | {"state": "live", "from_at": at("11:00"), "to_at": at("12:00")},
        names | {"state": "disconnected", "from_at": at("09:00"), "to_at": at("11:00")},
    ]
    stopped = {"feed": "crowd-sentiment", "subscriptions": 1, "state": "stopped"}
    nothing = [stopped | {"from_at": at("11:30"), "to_at": at("11:30")}]
    assert coverage_since(db.engine, "spool-1", at("09:00")) == [spans[0], *nothing, spans[1]]
    assert coverage_since(db.engine, "spool-1", at("09:00"), limit=1) == spans[:1]


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
        pytest.param({"limit": 9, "after": at("10:03:00")}, [("TSLA", 3)], id="what came since"),
        pytest.param({"limit": 9, "after": at("10:03:01")}, [], id="nothing came since"),
        pytest.param({"limit": 9, "ticker": "NONE"}, [], id="a ticker that there is not"),
    ],
)
def test_tail_shows_what_came_live(flowing: Database, asked: dict[str, object], expected: list[tuple]) -> None:
    assert [(row["ticker"], row["value"]) for row in tail(flowing.engine, **asked)] == expected


def test_tail_is_not_led_astray_by_a_row_from_the_future(flowing: Database) -> None:
    flowing.sample(*CROWD, "WHEN", "+1 10:00", 9.0, received_at=at("10:02:30"))
    assert [row["ticker"] for row in tail(flowing.engine, limit=4)] == ["TSLA", "WHEN", "AAPL", "TSLA"]


def test_tail_of_an_empty_database_is_empty(db: Database) -> None:
    assert tail(db.engine, limit=5) == []


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="unable to open"):
        status(connect(f"sqlite:///{tmp_path / 'none.db'}", read_only=True))


def test_what_reads_needs_no_right_to_write(flowing: Database, migrated_url: str) -> None:
    reader = connect(migrated_url.replace("postgresql://", "postgresql+psycopg://"), read_only=True)
    if reader.dialect.name == "postgresql":
        with reader.begin() as connection:
            connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    assert len(tail(reader, limit=3)) == 3
    assert status(reader)["feeds"]
    reader.dispose()
