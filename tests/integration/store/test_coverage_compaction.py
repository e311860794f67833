"""Compaction of coverage: views report the same before and after, for histories written by hand and random ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

from ingestor.config.model import RetentionConfig
from ingestor.core.times import to_us
from ingestor.store import views
from ingestor.store.maintenance import coverage_compaction, retention
from ingestor.store.maintenance.retention import Retention
from ingestor.store.read.audit import audit, find_losses
from ingestor.store.schema import instances
from tests.support.hypothesis_steps import wanted_steps

from .row_factory import Database, at

VIEWS = (views.wanted, views.covered, views.gaps, views.coverage_daily, views.crowd_sentiment_hourly)
STATES = ("live", "live", "live", "pending", "silent", "disconnected", "crashed", "stopped", "lost")

KEEP_A_DAY = {"payloads": "forever", "samples": "forever", "journal": "1d"}

Rows = list[tuple[int, str, str | None, str]]  # instance, from, to, state


@pytest.fixture
def db(engine: Engine) -> Database:
    db = Database(engine)
    for subscription_id, ticker in ((1, "AAPL"), (2, ""), (3, "TSLA")):
        db.subscription(subscription_id, ticker)
    for instance_id in (1, 2, 3):
        db.instance(instance_id, "+9 00:00")
    return db


def compact(db: Database, before: str) -> None:
    """Run a whole retention sweep that compacts what ended before ``before``."""
    sweep = Retention(db.engine, RetentionConfig.model_validate(KEEP_A_DAY))
    while sweep.step(1, to_us(at(before) + timedelta(days=1))).has_more:
        assert audit_messages(db) == []


def audit_messages(db: Database) -> list[str]:
    return [issue.message for issue in audit(db.engine) if issue.check == "coverage"]


def reports(db: Database) -> dict[str, Any]:
    """Everything that the views and the audit report about coverage."""
    rows: dict[str, Any] = {view.name: db.read(view) for view in VIEWS}
    return rows | {"lost": find_losses(db.engine)}


def coverage_rows(db: Database) -> list[Any]:
    query = "SELECT subscription_id, instance_id, start_seq, state FROM coverage ORDER BY 1, 2, 3"
    with db.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


HISTORIES = [
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "disconnected"), (1, "11:05", "12:00", "live")],
        [("11:00", "11:05", "done")],
        ["live"],
        id="repaired gap",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "disconnected"), (1, "11:05", "12:00", "live")],
        [("11:00", "11:04", "done"), ("11:04", "11:05", "failed")],
        ["live", "disconnected", "live"],
        id="gap repaired in part",
    ),
    pytest.param(
        [
            (1, "10:00", "11:00", "live"),
            (1, "11:00", "11:05", "disconnected"),
            (1, "11:05", "12:00", "live"),
            (2, "10:59", "11:06", "live"),
        ],
        [],
        ["live", "live"],
        id="gap covered by another instance",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "pending"), (1, "11:00", "12:00", "disconnected"), (2, "09:00", "13:00", "live")],
        [],
        ["live", "live"],
        id="never live, covered by another instance",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "lost"), (1, "11:05", "12:00", "live")],
        [("11:00", "11:05", "done")],
        ["live", "lost", "live"],
        id="lost, though repaired",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:05", "12:00", "live")],
        [("11:00", "11:05", "done")],
        ["live", "live"],
        id="rows that do not touch",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:00", "+7 11:05", "silent"), (1, "+7 11:05", None, "live")],
        [("11:00", "+7 11:05", "done")],
        ["live", "silent", "live"],
        id="not old enough",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "silent"), (1, "11:00", "11:00", "pending"), (1, "11:00", "12:00", "disconnected")],
        [],
        ["silent", "pending", "disconnected"],
        id="uncovered row of zero length",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "silent"), (1, "11:00", "11:00", "live"), (1, "11:00", "11:00", "pending")],
        [],
        ["silent", "live", "pending"],
        id="live row of zero length",
    ),
    pytest.param(
        # An open row may be closed with an earlier end than it has now.
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "disconnected"), (2, "09:00", None, "live")],
        [],
        ["live", "disconnected", "live"],
        id="covered by an open row",
    ),
]


@pytest.mark.parametrize(("rows", "repairs", "states"), HISTORIES)
def test_compaction_merges_covered_rows_only(
    db: Database, rows: Rows, repairs: Sequence[tuple[str, str, str]], states: list[str]
) -> None:
    for instance_id, start, end, state in rows:
        db.state(1, instance_id, state, start, end, reason=f"why {state}")
    for start, end, state in repairs:
        db.repair(1, start, end, state)
    before = reports(db)
    compact(db, "+7 00:00")
    assert [state for *_, state in coverage_rows(db)] == states
    assert reports(db) == before


def test_compaction_keeps_the_last_day(db: Database) -> None:
    now = at("+3 00:00")
    for start, end, state in (("+2 10:00", "+2 11:00", "live"), ("+2 11:00", "+2 12:00", "disconnected")):
        db.state(1, 1, state, start, end)
    db.repair(1, "+2 11:00", "+2 12:00")
    Retention(db.engine, RetentionConfig.model_validate({"journal": "1s"})).step(1, to_us(now))
    assert len(coverage_rows(db)) == 2


def test_compaction_skips_recent_rows_of_an_instance(db: Database) -> None:
    for instance_id in (1, 2):
        for minute in range(10, 50):
            db.state(1, instance_id, "silent", f"10:{minute}", f"10:{minute + 1}")
    with db.engine.connect() as connection:
        assert coverage_compaction.compact(connection, coverage_compaction.START, at("10:12"), 3) == (
            4,
            coverage_compaction.CoverageKey(1, 2, 0),
        )


def test_compaction_runs_once_a_day(db: Database) -> None:
    sweeps = Retention(db.engine, RetentionConfig.model_validate(KEEP_A_DAY))

    def sweep(clock: str) -> int:
        while sweeps.step(1, to_us(at(clock))).has_more:
            pass
        return len(coverage_rows(db))

    assert sweep("+5 01:00") == 0
    for start, end in (("10:00", "11:00"), ("11:00", "12:00")):
        db.state(1, 1, "live", start, end)
    assert sweep("+5 02:00") == 2
    assert sweep("+6 00:00") == 1


def _add_history(
    db: Database, choose: random.Random, subscription_id: int, instance_id: int, stepped_back: bool
) -> None:
    """Add rows of one instance as a daemon writes them: each starts where the previous one ended, or later.

    After the clock was set back, they start earlier.
    """
    minute = choose.randrange(0, 3000, 10)
    for _ in range(choose.randrange(12)):
        if stepped_back and choose.random() < 0.3:
            minute = choose.randrange(0, 3000, 10)
        length = choose.choice((0, 10, 10, 30, 200, 1500))
        is_open = choose.random() < 0.1
        start, end = (f"{m // 1440} {m % 1440 // 60}:{m % 60}" for m in (minute, minute + length))
        state = choose.choice(STATES)
        db.state(subscription_id, instance_id, state, start, None if is_open else end, choose.choice(("", "why", "so")))
        if is_open:
            return
        minute += length + choose.choice((0, 0, 0, 0, 10))


def _add_repairs(db: Database, choose: random.Random, subscription_id: int) -> None:
    for start in choose.sample(range(0, 8000, 10), choose.randrange(12)):
        end = start + choose.choice((10, 30, 200, 2000))
        span = (f"{m // 1440} {m % 1440 // 60}:{m % 60}" for m in (start, end))
        db.repair(subscription_id, *span, choose.choice(("done", "done", "open", "failed")))


@pytest.mark.parametrize("seed", range(wanted_steps(40)))
def test_compaction_changes_no_view_of_random_histories(
    db: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    choose = random.Random(seed)
    rows = choose.choice((1, 2, 3, 7, 1000))
    monkeypatch.setattr(retention, "FIRST_ROWS", rows)
    monkeypatch.setattr(retention, "STEP_ROWS", rows)
    stepped_back = choose.choice(((), (), (1,), (1, 2)))
    with db.engine.begin() as connection:  # and one may have ended before it vouched for all of its coverage
        connection.execute(update(instances).values(stepped_back=instances.c.instance_id.in_(stepped_back)))
        last = update(instances).where(instances.c.instance_id == 3)
        connection.execute(last.values(heartbeat_at=at(choose.choice(("+9 00:00", "+2 12:00")))))
    for subscription_id in (1, 2, 3):
        for instance_id in (1, 2, 3):
            _add_history(db, choose, subscription_id, instance_id, instance_id in stepped_back)
        _add_repairs(db, choose, subscription_id)
    for hour in range(0, 150, 3):
        ticker, clock = choose.choice(("AAPL", "TSLA")), f"{hour // 24} {hour % 24}:00"
        db.sample("crowd-sentiment", "crowd_sentiment", ticker, clock, 1)
    before = reports(db)
    for day in sorted(choose.sample(range(1, 9), 2)):
        compact(db, f"{day} {choose.randrange(24)}:00")
        assert reports(db) == before
    compacted = coverage_rows(db)
    monkeypatch.setattr(retention, "FIRST_ROWS", 1000)
    compact(db, f"{day} 00:00")
    assert coverage_rows(db) == compacted  # page boundaries made no difference
