from __future__ import annotations

import pytest

from ingestor.core.entries import Fact
from ingestor.provider.subscriptions.states import SubscriptionStates

A, B = ("/a", "get", "{}"), ("/b", "get", "{}")


@pytest.fixture
def facts() -> list[Fact]:
    return []


@pytest.fixture
def coverage(facts: list[Fact]) -> SubscriptionStates:
    return SubscriptionStates(facts.append)


def test_a_change_is_one_fact_for_all_that_it_concerns(coverage: SubscriptionStates, facts: list[Fact]) -> None:
    coverage.change("subscribed", "live", [A, B], {"reason": "x"}, since_us=7)
    assert [(fact.kind, fact.state, fact.subscriptions, fact.since_us) for fact in facts] == [
        ("subscribed", "live", (A, B), 7)
    ]
    standing = coverage[A]
    assert standing is not None
    assert (standing.state, standing.since_us, standing.reason) == ("live", 7, "x")


def test_what_is_in_the_state_already_is_not_told_again(coverage: SubscriptionStates, facts: list[Fact]) -> None:
    coverage.change("subscribed", "live", [A], {}, since_us=7)
    coverage.change("subscribed", "live", [A, B], {}, since_us=9)
    assert facts[1].subscriptions == (B,)
    assert coverage.are("live", [A, B]) == [A, B]


def test_a_fact_that_changes_no_state_is_recorded_without_one(coverage: SubscriptionStates, facts: list[Fact]) -> None:
    coverage.change("connect_failed", "disconnected", [A], {})
    coverage.change("connect_failed", "disconnected", [A], {})
    assert [(fact.state, fact.subscriptions) for fact in facts] == [("disconnected", (A,)), (None, ())]


def test_a_state_never_ends_before_it_began(coverage: SubscriptionStates, facts: list[Fact]) -> None:
    coverage.change("subscribed", "live", [A], {}, since_us=10)
    coverage.change("subscribed", "live", [B], {}, since_us=50)
    coverage.change("disconnected", "disconnected", [A, B], {}, since_us=20)
    assert [(fact.state, fact.subscriptions, fact.since_us) for fact in facts[2:]] == [("disconnected", (A, B), 20)]
    a, b = coverage[A], coverage[B]
    assert a is not None
    assert b is not None
    assert (a.since_us, b.since_us) == (20, 50)
