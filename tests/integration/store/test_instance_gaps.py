"""The view of what each instance by itself did not receive, beside ``gaps``, which is the union of all instances."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from sqlalchemy import Engine, text

from ingestor.store import views

from .row_factory import Database, at

STATES = ("live", "live", "disconnected", "silent", "pending", "stopped", "crashed")


@pytest.fixture
def two_hosts(engine: Engine) -> Database:
    """A subscription that two instances know, up to 12:00."""
    db = Database(engine)
    db.subscription(1, "AAPL")
    db.subscription(2)
    db.instance(1, "12:00", name="host1")
    db.instance(2, "12:00", name="host2")
    return db


def test_gap_of_one_instance_that_the_other_covered_is_in_no_union(two_hosts: Database) -> None:
    two_hosts.state(1, 1, "live", "10:00", "11:00")
    two_hosts.state(1, 1, "disconnected", "11:00", "11:06", "closed")
    two_hosts.state(1, 1, "pending", "11:06", "11:07", "subscribed")
    two_hosts.state(1, 1, "live", "11:07", None)
    two_hosts.state(1, 2, "live", "10:00", None)
    assert two_hosts.read(views.gaps) == []
    subscription = (1, "crowd-sentiment", "/real-time/crowd-sentiment", '{"ticker":"AAPL"}', "AAPL")
    gap = (at("11:00"), at("11:07"), 420, 420, "disconnected, pending", "closed, subscribed")
    assert two_hosts.read(views.instance_gaps) == [(1, "host1", *subscription, *gap)]


def test_gap_of_both_instances_is_covered_where_either_received(two_hosts: Database) -> None:
    for instance_id, start, end, reason in ((1, "11:00", "11:10", "kicked"), (2, "11:06", "11:20", "closed")):
        two_hosts.state(1, instance_id, "live", "10:00", start)
        two_hosts.state(1, instance_id, "disconnected", start, end, reason)
        two_hosts.state(1, instance_id, "live", end, None)
    columns = ("instance_name", "from_at", "to_at", "covered_seconds", "reason")
    assert two_hosts.read(views.instance_gaps, *columns) == [
        ("host1", at("11:00"), at("11:10"), 360, "kicked"),
        ("host2", at("11:06"), at("11:20"), 600, "closed"),
    ]
    assert two_hosts.read(views.gaps, "from_at", "to_at", "reason") == [
        (at("11:06"), at("11:10"), "kicked, closed"),
    ]


@pytest.mark.parametrize(
    ("repaired", "other_path", "covered_seconds"),
    [
        pytest.param(None, False, 0, id="by nothing"),
        pytest.param(("11:02", "11:30"), False, 240, id="by a repair, in part"),
        pytest.param(None, True, 360, id="by a subscription without ticker"),
    ],
)
def test_gap_of_the_only_instance_may_be_covered_otherwise(
    two_hosts: Database, repaired: tuple[str, str] | None, other_path: bool, covered_seconds: float
) -> None:
    two_hosts.state(1, 1, "live", "10:00", "11:00")
    two_hosts.state(1, 1, "disconnected", "11:00", "11:06")
    two_hosts.state(1, 1, "live", "11:06", None)
    if repaired:
        two_hosts.repair(1, *repaired)
    if other_path:
        two_hosts.state(2, 1, "live", "10:00", None)
    found = two_hosts.read(views.instance_gaps, "seconds", "covered_seconds", subscription_id=1)
    assert found == [(360, covered_seconds)]


def test_instance_without_a_row_of_its_own_has_gaps_without_name(two_hosts: Database) -> None:
    two_hosts.state(1, 7, "disconnected", "10:00", "10:30")
    assert two_hosts.read(views.instance_gaps, "instance_id", "instance_name", "seconds") == [(7, "", 1800)]


@pytest.mark.parametrize("seed", range(3))
def test_instance_gaps_are_the_gaps_that_each_instance_would_have_alone(two_hosts: Database, seed: int) -> None:
    pick = random.Random(seed)
    for instance_id in (1, 2):
        _add_history(two_hosts, pick, instance_id)
    union = two_hosts.read(views.gaps, "from_at", "to_at")
    found = two_hosts.read(views.instance_gaps, "instance_id", "from_at", "to_at", "states", "covered_seconds")
    for _, start, end, _, covered_seconds in found:
        uncovered = sum(max((min(end, to_at) - max(start, from_at)).total_seconds(), 0) for from_at, to_at in union)
        assert covered_seconds == pytest.approx((end - start).total_seconds() - uncovered)
    alone = []
    for instance_id in (1, 2):
        alone += [(instance_id, *gap) for gap in _gaps_without(two_hosts, 3 - instance_id)]
    assert [row[:4] for row in found] == sorted(alone)
    assert any(row[4] for row in found) and union


def _add_history(db: Database, pick: random.Random, instance_id: int) -> None:
    minutes = sorted(pick.sample(range(60), 12))
    for start, end in pairwise(minutes):
        state = pick.choice(STATES)
        db.state(
            1, instance_id, state, f"10:{start:02}", f"10:{end:02}" if end < minutes[-1] else None, f"it was {state}"
        )


def _gaps_without(db: Database, instance_id: int) -> list[tuple[object, ...]]:
    """Read the gaps as they would be without an instance, and keep its rows."""
    columns = ("from_at", "to_at", "states")
    with db.engine.connect() as connection:
        connection.execute(text("DELETE FROM coverage WHERE instance_id = :id"), {"id": instance_id})
        query = views.gaps.select().with_only_columns(*(views.gaps.c[name] for name in columns))
        found = [tuple(row) for row in connection.execute(query)]
        connection.rollback()
    return found


def test_instance_gaps_cost_no_more_than_an_order_above_gaps(two_hosts: Database) -> None:
    """Subscriptions with 50 outages on each of two hosts, of which every second is shared."""
    rows = []
    for subscription in range(10, 20):
        two_hosts.subscription(subscription, f"T{subscription}")
        for instance_id in (1, 2):
            for number in range(50):
                start = number * 60 + (number % 2) * 20 * instance_id
                for state, begin, end in (("live", number * 60, start), ("disconnected", start, start + 15)):
                    rows.append((subscription, instance_id, state, begin, end))
                rows.append((subscription, instance_id, "live", start + 15, number * 60 + 60))
    two_hosts.add_states(rows)
    seconds = {}
    for view in (views.gaps, views.instance_gaps):
        began = time.perf_counter()
        count = len(two_hosts.read(view, "from_at", "states"))
        seconds[view.name] = time.perf_counter() - began
        assert count >= 250
    print(seconds)
    assert seconds["instance_gaps"] < 10 * seconds["gaps"] + 1
