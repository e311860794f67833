"""Covered time of random histories, also with clocks that were set back, against an oracle that counts minutes."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, insert

from ingestor.store import schema, views
from tests.support.hypothesis_steps import wanted_steps

from .row_factory import Database, at

START = at("10:00")
PATH, PARAMS = "/real-time/crowd-sentiment", '{"period":"30"}'
STATES = ("live", "live", "live", "disconnected", "silent", "stopped", "crashed")
MINUTES, END = 40, 1000  # all intervals begin within, and end before


class Clock(NamedTuple):
    """What an instance said last, in minutes after START."""

    stepped_back: bool
    heartbeat: int | None
    heard: int | None


CLOCKS = {
    1: Clock(False, 45, 42),
    2: Clock(False, 30, None),
    3: Clock(True, 45, 40),
    4: Clock(True, 25, 30),
    5: Clock(False, None, None),
}


class Interval(NamedTuple):
    instance_id: int
    state: str
    start: int
    end: int | None


def random_history(chance: random.Random) -> list[Interval]:
    """The intervals of one subscription: of an instance one after the other, but from anywhere after each step back."""
    history: list[Interval] = []
    for instance_id in chance.sample(sorted(CLOCKS), chance.choice((1, 1, 2))):
        minute, count = chance.randrange(MINUTES), chance.randint(1, 6)
        for number in range(count):
            if CLOCKS[instance_id].stepped_back and chance.random() < 0.3:
                minute = chance.randrange(MINUTES)
            end = minute + chance.choice((0, 1, 2, 5, 15))
            is_open = number == count - 1 and chance.random() < 0.7
            history.append(Interval(instance_id, chance.choice(STATES), minute, None if is_open else end))
            minute = end + chance.choice((0, 0, 0, 3))
    return history


def counted(interval: Interval) -> range:
    """The minutes that an interval counts: until what its instance vouches for, at most."""
    clock, end = CLOCKS[interval.instance_id], interval.end
    if end is None:
        end = interval.start if interval.state == "stopped" else clock.heartbeat or 0
        if interval.state == "live" and clock.heard is not None:
            end = min(end, clock.heard)
    cap = END if clock.heartbeat is None else clock.heartbeat
    start = min(interval.start, cap)
    return range(start, max(start, min(end, cap)))


def contradicted(interval: Interval) -> range:
    """The minutes in which nothing else of its instance counts as live: when stopped, up to the heartbeat."""
    heartbeat = CLOCKS[interval.instance_id].heartbeat
    if interval.state != "stopped" or interval.end is not None or heartbeat is None:
        return counted(interval)
    return range(interval.start, heartbeat)


def is_shown(interval: Interval) -> bool:
    heartbeat = CLOCKS[interval.instance_id].heartbeat
    return heartbeat is None or interval.start <= heartbeat


def covered_minutes(history: list[Interval]) -> set[int]:
    """The minutes in which some instance was live, and never anything else."""
    live, not_live = defaultdict(set), defaultdict(set)
    for interval in history:
        if interval.state == "live":
            live[interval.instance_id].update(counted(interval))
        else:
            not_live[interval.instance_id].update(contradicted(interval))
    return {minute for instance_id, minutes in live.items() for minute in minutes - not_live[instance_id]}


def test_covered_time_of_random_histories_is_never_contradicted(engine: Engine) -> None:
    chance = random.Random(13)
    histories = {number: random_history(chance) for number in range(1, wanted_steps(400) + 1)}
    db = Database(engine)
    for instance_id, clock in CLOCKS.items():
        heartbeat = None if clock.heartbeat is None else f"10:{clock.heartbeat}"
        db.instance(instance_id, heartbeat, stepped_back=clock.stepped_back)
        if clock.heard is not None:
            db.add("connections", instance_id=instance_id, path=PATH, params=PARAMS, heard_at=minute_at(clock.heard))
    insert_histories(engine, histories)

    found = minutes_by_subscription(db, views.covered)
    wanted = {number: set(covered_minutes(history)) for number, history in histories.items()}
    assert {number: (histories[number], found[number]) for number in histories if found[number] != wanted[number]} == {}
    gaps = minutes_by_subscription(db, views.gaps)
    for number, ((start, end),) in read_spans(db, views.wanted).items():
        shown = [interval for interval in histories[number] if is_shown(interval)]
        counts = [counted(interval) for interval in shown]
        # What was live after a removal, by a clock that ran ahead, need not be wanted.
        sure = [counted(interval).stop for interval in shown if interval.state != "live"]
        sure += [minute + 1 for minute in wanted[number]]
        assert start == min(c.start for c in counts), histories[number]
        assert max(sure, default=start) <= end <= max(c.stop for c in counts), histories[number]
        assert gaps[number] == set(range(start, end)) - wanted[number], histories[number]
    assert_candles(db, wanted, {number: span for number, (span,) in read_spans(db, views.wanted).items()})


def assert_candles(db: Database, covered: dict[int, set[int]], wanted: dict[int, tuple[int, int]]) -> None:
    """Compare the candles, of tickers without a sample, with minutes; START begins an hour."""
    names = [{"series_id": n, "ticker": f"T{n}", "feed": "crowd-sentiment", "metric": "m"} for n in covered]
    with db.engine.begin() as connection:
        connection.execute(insert(schema.series).values(first_seen_at=START), names)
    expected = {
        (f"T{number}", minute_at(hour)): len(minutes & set(range(hour, hour + 60)))
        for number, minutes in covered.items()
        for hour in range(0, END, 60)
        if number in wanted and max(wanted[number][0], hour) < min(wanted[number][1], hour + 60)
    }
    hours = db.read(views.candles_hourly, "ticker", "bucket_at", "covered_minutes", "coverage_percent", "samples")
    assert {(ticker, at_): minutes for ticker, at_, minutes, _, _ in hours} == expected
    assert all(percent == pytest.approx(100 * minutes / 60) and not samples for *_, minutes, percent, samples in hours)
    days = db.read(views.candles_daily, "ticker", "covered_minutes")
    shares = dict(db.read(views.coverage_daily, "ticker", "coverage_percent"))
    assert {ticker: pytest.approx(minutes / 14.4) for ticker, minutes in days} == shares


def insert_histories(engine: Engine, histories: dict[int, list[Interval]]) -> None:
    rows: list[dict[str, Any]] = []
    for number, history in histories.items():
        for seq, (instance_id, state, start, end) in enumerate(history, 1):
            times = {"started_at": minute_at(start), "ended_at": None if end is None else minute_at(end)}
            names = {"subscription_id": number, "instance_id": instance_id, "start_seq": seq, "state": state}
            rows.append(names | times | {"reason": ""})
    shared = {"feed": "crowd-sentiment", "path": PATH, "method": "get", "connection_params": PARAMS}
    with engine.begin() as connection:
        connection.execute(
            insert(schema.subscriptions),
            [
                shared | {"subscription_id": n, "params": f"{n}", "ticker": f"T{n}", "first_seen_at": START}
                for n in histories
            ],
        )
        connection.execute(insert(schema.coverage), rows)


def minute_at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def read_spans(db: Database, view: Any) -> dict[int, list[tuple[int, int]]]:
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, start, end in db.read(view, "subscription_id", "from_at", "to_at"):
        spans[number].append(((start - START) // timedelta(minutes=1), (end - START) // timedelta(minutes=1)))
    return spans


def minutes_by_subscription(db: Database, view: Any) -> dict[int, set[int]]:
    minutes: dict[int, set[int]] = defaultdict(set)
    for number, spans in read_spans(db, view).items():
        assert all(before[1] < after[0] for before, after in itertools.pairwise(spans)), spans
        minutes[number] = {minute for span in spans for minute in range(*span)}
    return minutes


def test_nothing_is_wanted_after_the_last_byte_until_the_time_before_a_step_back_comes_again(engine: Engine) -> None:
    db = Database(engine)
    db.instance(3, "10:45", stepped_back=True)
    db.add("connections", instance_id=3, path=PATH, params=PARAMS, heard_at=minute_at(40))
    before = [Interval(3, "live", 50, 60), Interval(3, "silent", 60, 61)]
    insert_histories(engine, {1: [*before, Interval(3, "live", 30, None)]})
    assert read_spans(db, views.wanted) == {1: [(30, 40)]}
    assert read_spans(db, views.gaps) == {}
