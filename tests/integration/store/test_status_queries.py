"""Queries of the status page and of `ingestor status` without a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from ingestor.errors import DatabaseUnavailable
from ingestor.store.engine import make_engine
from ingestor.store.read.status_queries import load_state_spans, load_status

from .row_factory import Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


def test_status_of_an_empty_database_is_empty(db: Database) -> None:
    assert load_status(db.engine) == {"instances": [], "feeds": [], "states": [], "dead": []}


def test_status_sums_the_ledger_of_each_instance(db: Database) -> None:
    db.instance(1, "10:00", position=20, name="one", version="1.0")
    db.instance(2, None, name="two")
    for first_seq, clock in ((1, "09:00"), (11, "09:30")):
        counts = {"frames": 9, "facts": 1, "row_count": 7, "new_rows": 4, "revised_rows": 2, "dead_rows": 1}
        db.add("batches", instance_id=1, first_seq=first_seq, last_seq=first_seq + 9, committed_at=at(clock), **counts)
    first, second = load_status(db.engine)["instances"]
    assert first == {
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
        "expired_rows": 0,
    }
    assert (second["name"], second["frames"], second["heartbeat_at"], second["committed_at"]) == ("two", 0, None, None)


def test_status_has_feeds_states_and_dead_letters(db: Database) -> None:
    db.sample(*CROWD, "AAPL", "10:00", 0.5, received_at=at("10:00:05"))
    db.sample(*CROWD, "TSLA", "10:01", 0.5, received_at=at("10:01:05"))
    db.state(1, 1, "live", "10:00", "10:30")
    db.state(1, 1, "refused", "10:30", None)
    db.state(2, 1, "live", "10:00", None)
    for seq, retried in ((1, None), (2, at("11:00"))):
        db.add("dead_letters", instance_id=1, seq=seq, received_at=at("10:00"), stage="decode", retried_at=retried)
    status = load_status(db.engine)
    assert status["feeds"] == [{"feed": CROWD[0], "series": 2, "ts": at("10:01"), "received_at": at("10:01:05")}]
    assert status["states"] == [
        {"instance_id": 1, "state": "live", "subscriptions": 1},
        {"instance_id": 1, "state": "refused", "subscriptions": 1},
    ]
    assert status["dead"] == [{"stage": "decode", "letters": 1}]


def test_state_spans_count_subscriptions_with_equal_times(db: Database) -> None:
    db.instance(1, "12:00")
    db.instance(2, "12:00")
    for number, ticker in enumerate(("AAPL", "TSLA"), 1):
        db.subscription(number, ticker)
        db.state(number, 1, "live", "08:00", "09:00")  # ends before the requested time
        db.state(number, 1, "disconnected", "09:00", "11:00", reason=f"closed, {ticker}")
        db.state(number, 1, "live", "11:00", None)  # open: up to the heartbeat
    db.subscription(3, "ON")
    db.state(3, 1, "stopped", "11:30", None)  # removed from the config
    db.state(1, 2, "refused", "08:00", None)  # of another instance
    names = {"feed": "crowd-sentiment", "subscriptions": 2}
    spans = [
        names | {"state": "live", "from_at": at("11:00"), "to_at": at("12:00")},
        names | {"state": "disconnected", "from_at": at("09:00"), "to_at": at("11:00")},
    ]
    stopped = {"feed": "crowd-sentiment", "subscriptions": 1, "state": "stopped"}
    empty_span = [stopped | {"from_at": at("11:30"), "to_at": at("11:30")}]
    assert load_state_spans(db.engine, "spool-1", at("09:00")) == [spans[0], *empty_span, spans[1]]
    assert load_state_spans(db.engine, "spool-1", at("09:00"), limit=1) == spans[:1]


def test_status_of_missing_database_raises_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="unable to open"):
        load_status(make_engine(f"sqlite:///{tmp_path / 'none.db'}", read_only=True))
