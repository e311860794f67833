"""Old coverage in fewer rows: whatever the views said of it they say still. Histories by hand, and any at all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from ingestor.config.model import RetentionConfig as Horizons
from ingestor.core.times import to_us
from ingestor.store import views
from ingestor.store.maintenance import coverage_compaction, retention
from ingestor.store.maintenance.retention import Retention
from ingestor.store.read.audit import audit, find_losses
from tests.support.hypothesis_steps import wanted_steps

from .row_factory import Database, at

ANSWERS = (views.wanted, views.covered, views.gaps, views.coverage_daily, views.crowd_sentiment_hourly)
STATES = ("live", "live", "live", "pending", "silent", "disconnected", "crashed", "stopped", "lost")

Rows = list[tuple[int, str, str | None, str]]  # instance, from, to, state


@pytest.fixture
def db(engine: Engine) -> Database:
    made = Database(engine)
    for subscription_id, ticker in ((1, "AAPL"), (2, ""), (3, "TSLA")):
        made.subscription(subscription_id, ticker)
    for instance_id in (1, 2, 3):
        made.instance(instance_id, "+9 00:00")
    return made


def fold(db: Database, before: str, *, keep: str = "1d") -> None:
    """A whole sweep, of what was over by then."""
    horizons = Horizons.model_validate({"payloads": "forever", "samples": "forever", "journal": keep})
    made = Retention(db.engine, horizons)
    while made.step(1, to_us(at(before) + timedelta(seconds=horizons.journal or 0))).has_more:
        assert unbalanced(db) == []


def unbalanced(db: Database) -> list[str]:
    return [found.message for found in audit(db.engine) if found.check == "coverage"]


def answers(db: Database) -> dict[str, Any]:
    """All that is asked of coverage."""
    found: dict[str, Any] = {view.name: db.read(view) for view in ANSWERS}
    return found | {"lost": find_losses(db.engine)}


def table(db: Database) -> list[Any]:
    query = "SELECT subscription_id, instance_id, start_seq, state FROM coverage ORDER BY 1, 2, 3"
    with db.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


FOLDED = [
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "disconnected"), (1, "11:05", "12:00", "live")],
        [("11:00", "11:05", "done")],
        ["live"],
        id="a gap that was repaired",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "disconnected"), (1, "11:05", "12:00", "live")],
        [("11:00", "11:04", "done"), ("11:04", "11:05", "failed")],
        ["live", "disconnected", "live"],
        id="one that was not, or not whole",
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
        id="one that another instance listened in",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "pending"), (1, "11:00", "12:00", "disconnected"), (2, "09:00", "13:00", "live")],
        [],
        ["live", "live"],
        id="an instance that never had what another had",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "lost"), (1, "11:05", "12:00", "live")],
        [("11:00", "11:05", "done")],
        ["live", "lost", "live"],
        id="what was received and lost",
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
        id="what is not over for so long",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "silent"), (1, "11:00", "11:00", "pending"), (1, "11:00", "12:00", "disconnected")],
        [],
        ["silent", "pending", "disconnected"],
        id="a gap with a moment in it",
    ),
    pytest.param(
        [(1, "10:00", "11:00", "silent"), (1, "11:00", "11:00", "live"), (1, "11:00", "11:00", "pending")],
        [],
        ["silent", "live", "pending"],
        id="what was live for no time",
    ),
    pytest.param(
        # An open row may be closed as of earlier than was said so far.
        [(1, "10:00", "11:00", "live"), (1, "11:00", "11:05", "disconnected"), (2, "09:00", None, "live")],
        [],
        ["live", "disconnected", "live"],
        id="covered by what is open",
    ),
]


@pytest.mark.parametrize(("rows", "repairs", "states"), FOLDED)
def test_what_was_had_becomes_one_row_and_what_was_missed_stays(
    db: Database, rows: Rows, repairs: Sequence[tuple[str, str, str]], states: list[str]
) -> None:
    for instance_id, start, end, state in rows:
        db.state(1, instance_id, state, start, end, reason=f"why {state}")
    for start, end, repaired in repairs:
        db.repair(1, start, end, repaired)
    before = answers(db)
    fold(db, "+7 00:00")
    assert [state for *_, state in table(db)] == states
    assert answers(db) == before


def test_the_last_day_is_as_it_was_however_little_is_kept(db: Database) -> None:
    now = at("+3 00:00")
    for start, end, state in (("+2 10:00", "+2 11:00", "live"), ("+2 11:00", "+2 12:00", "disconnected")):
        db.state(1, 1, state, start, end)
    db.repair(1, "+2 11:00", "+2 12:00")
    horizons = Horizons.model_validate({"journal": "1s"})
    Retention(db.engine, horizons).step(1, to_us(now))
    assert len(table(db)) == 2


def test_of_what_is_not_old_one_page_of_each_history_is_read(db: Database) -> None:
    for instance_id in (1, 2):
        for minute in range(10, 50):
            db.state(1, instance_id, "silent", f"10:{minute}", f"10:{minute + 1}")
    with db.engine.connect() as connection:
        assert coverage_compaction.compact(connection, coverage_compaction.START, at("10:12"), 3) == (
            4,
            coverage_compaction.CoverageKey(1, 2, 0),
        )


def test_coverage_is_read_once_a_day(db: Database) -> None:
    made = Retention(db.engine, Horizons.model_validate({"journal": "1d", "payloads": "forever"}))

    def sweep(clock: str) -> int:
        while made.step(1, to_us(at(clock))).has_more:
            pass
        return len(table(db))

    assert sweep("+5 01:00") == 0
    for start, end in (("10:00", "11:00"), ("11:00", "12:00")):
        db.state(1, 1, "live", start, end)
    assert sweep("+5 02:00") == 2
    assert sweep("+6 00:00") == 1


def _history(db: Database, choose: random.Random, subscription_id: int, instance_id: int) -> None:
    """Rows of one instance as it writes them: each begins where the one before ended, or later after it was ended."""
    minute = choose.randrange(0, 3000, 10)
    for _ in range(choose.randrange(12)):
        length = choose.choice((0, 10, 10, 30, 200, 1500))
        is_open = choose.random() < 0.02
        start, end = (f"{m // 1440} {m % 1440 // 60}:{m % 60}" for m in (minute, minute + length))
        state = choose.choice(STATES)
        db.state(subscription_id, instance_id, state, start, None if is_open else end, choose.choice(("", "why", "so")))
        if is_open:
            return
        minute += length + choose.choice((0, 0, 0, 0, 10))


def _repairs(db: Database, choose: random.Random, subscription_id: int) -> None:
    for start in choose.sample(range(0, 8000, 10), choose.randrange(12)):
        end = start + choose.choice((10, 30, 200, 2000))
        span = (f"{m // 1440} {m % 1440 // 60}:{m % 60}" for m in (start, end))
        db.repair(subscription_id, *span, choose.choice(("done", "done", "open", "failed")))


@pytest.mark.parametrize("seed", range(wanted_steps(40)))
def test_every_answer_is_the_same_before_and_after(db: Database, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    choose = random.Random(seed)
    rows = choose.choice((1, 2, 3, 7, 1000))
    monkeypatch.setattr(retention, "FIRST_ROWS", rows)
    monkeypatch.setattr(retention, "STEP_ROWS", rows)
    for subscription_id in (1, 2, 3):
        for instance_id in (1, 2, 3):
            _history(db, choose, subscription_id, instance_id)
        _repairs(db, choose, subscription_id)
    for hour in range(0, 150, 3):
        ticker, clock = choose.choice(("AAPL", "TSLA")), f"{hour // 24} {hour % 24}:00"
        db.sample("crowd-sentiment", "crowd_sentiment", ticker, clock, 1)
    before = answers(db)
    for day in sorted(choose.sample(range(1, 9), 2)):
        fold(db, f"{day} {choose.randrange(24)}:00")
        assert answers(db) == before
    once = table(db)
    monkeypatch.setattr(retention, "FIRST_ROWS", 1000)
    fold(db, f"{day} 00:00")
    assert table(db) == once  # nothing was left because of where pages ended
