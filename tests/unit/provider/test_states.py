from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest

from ingestor.core.entries import Fact, State
from ingestor.provider.subscriptions.states import TRANSITIONS, Event, SubscriptionStates

A, B = ("/a", "get", "{}"), ("/b", "get", "{}")

# One row for each state, one column for each event. "-": the event has no effect in this state.
TABLE = """
              added    requested  acknowledged  rejected  no_data  interrupted  confirmed  disconnected  token_failed  spool_full  standby  stopped
new           pending  -          -             -         -        -            -          -             token_failed  spool_full  standby  stopped
pending       -        -          live          refused   -        -            -          disconnected  token_failed  spool_full  standby  stopped
live          -        -          -             refused   silent   silent       -          disconnected  token_failed  spool_full  standby  stopped
silent        -        pending    live          refused   -        -            live       disconnected  token_failed  spool_full  standby  stopped
refused       -        pending    live          -         -        -            -          disconnected  token_failed  spool_full  standby  stopped
disconnected  -        pending    live          refused   -        -            -          -             token_failed  spool_full  standby  stopped
token_failed  pending  pending    live          refused   -        -            -          disconnected  -             spool_full  standby  stopped
spool_full    pending  pending    live          refused   -        -            -          disconnected  token_failed  -           standby  stopped
standby       pending  pending    live          refused   -        -            -          disconnected  token_failed  spool_full  -        stopped
stopped       -        -          -             -         -        -            -          -             -             -           -        -
"""  # noqa: E501

# A shortest way into each state, from new.
PATHS: dict[str, tuple[Event, ...]] = {
    "new": (),
    "pending": ("added",),
    "live": ("added", "acknowledged"),
    "silent": ("added", "acknowledged", "no_data"),
    "refused": ("added", "rejected"),
    "disconnected": ("added", "disconnected"),
    "token_failed": ("token_failed",),
    "spool_full": ("spool_full",),
    "standby": ("standby",),
    "stopped": ("stopped",),
}


def cells() -> Iterator[tuple[str, Any, str]]:
    """Yield the state, the event and the state that follows of each cell."""
    header, *rows = (line.split() for line in TABLE.strip().splitlines())
    for state, *targets in rows:
        yield from ((state, event, target) for event, target in zip(header, targets, strict=True))


@pytest.fixture
def facts() -> list[Fact]:
    return []


@pytest.fixture
def states(facts: list[Fact]) -> SubscriptionStates:
    return SubscriptionStates(facts.append)


@pytest.mark.parametrize(("before", "event", "target"), list(cells()))
def test_event_in_state(states: SubscriptionStates, facts: list[Fact], before: str, event: Event, target: str) -> None:
    for number, earlier in enumerate(PATHS[before]):
        states.apply(earlier, [A], {}, number, kind="earlier")
    current = states[A]
    assert (current.state if current else "new") == before
    states.apply(event, [A], {"reason": "why"}, 100, kind="kind")
    after = states[A]
    if target == "-":
        assert after == current
        assert facts[-1] == Fact("kind", 100, {"reason": "why"})
    else:
        assert after is not None
        assert (after.state, after.since_us, after.reason) == (target, 100, "why")
        assert facts[-1] == Fact("kind", 100, {"reason": "why"}, after.state, (A,))


def test_transitions_are_exactly_those_of_the_table() -> None:
    expected = {(None if state == "new" else state, event): target for state, event, target in cells() if target != "-"}
    assert dict(TRANSITIONS) == expected
    assert {event for _, event, _ in cells()} == set(get_args(Event))


def test_each_event_leads_to_one_state() -> None:
    assert len({(event, target) for (_, event), target in TRANSITIONS.items()}) == len(get_args(Event))


def test_crashed_and_lost_are_set_elsewhere() -> None:
    reached = {*(state for state, _ in TRANSITIONS), *TRANSITIONS.values()}
    assert set(get_args(State)) - reached == {"crashed", "lost"}


def test_apply_records_one_fact_for_all_keys(states: SubscriptionStates, facts: list[Fact]) -> None:
    states.apply("added", [A, B], {}, 1)
    states.apply("acknowledged", [A, B], {"reason": "x"}, 9, 7)
    assert facts[1] == Fact("subscribed", 9, {"reason": "x"}, "live", (A, B), 7)


def test_apply_names_only_the_keys_that_change(states: SubscriptionStates, facts: list[Fact]) -> None:
    states.apply("added", [A, B], {}, 1)
    states.apply("acknowledged", [A], {}, 8, 7)
    assert states.affected("acknowledged", [A, B]) == [B]
    states.apply("acknowledged", [A, B], {}, 10, 9)
    assert facts[2].subscriptions == (B,)
    assert states.in_state("live", [A, B]) == [A, B]
    current = states[A]
    assert current is not None
    assert current.since_us == 7


def test_repeated_event_is_recorded_without_a_state(states: SubscriptionStates, facts: list[Fact]) -> None:
    states.apply("added", [A], {}, 1)
    states.apply("disconnected", [A], {}, 2, 2, kind="connect_failed")
    states.apply("disconnected", [A], {}, 3, 3, kind="connect_failed")
    assert [(fact.state, fact.subscriptions, fact.since_us) for fact in facts[1:]] == [
        ("disconnected", (A,), 2),
        (None, (), None),
    ]


def test_state_never_ends_before_it_began(states: SubscriptionStates, facts: list[Fact]) -> None:
    states.apply("added", [A, B], {}, 1)
    states.apply("acknowledged", [A], {}, 60, 10)
    states.apply("acknowledged", [B], {}, 60, 50)
    states.apply("disconnected", [A, B], {}, 70, 20, kind="disconnected")
    assert [(fact.state, fact.subscriptions, fact.since_us) for fact in facts[3:]] == [("disconnected", (A, B), 20)]
    a, b = states[A], states[B]
    assert a is not None
    assert b is not None
    assert (a.since_us, b.since_us) == (20, 50)


def test_forgotten_subscription_is_new_again(states: SubscriptionStates) -> None:
    states.apply("stopped", [A], {}, 1)
    states.forget([A])
    assert states[A] is None
    states.apply("added", [A], {}, 2)
    assert states.in_state("pending", [A]) == [A]


def test_record_all_repeats_every_state_as_of_now(states: SubscriptionStates, facts: list[Fact]) -> None:
    states.apply("added", [A, B], {}, 1)
    states.apply("acknowledged", [B], {}, 2)
    states.record_all(5)
    repeated = [(fact.kind, fact.at_us, fact.state, fact.subscriptions, fact.since_us) for fact in facts[2:]]
    assert repeated == [("restated", 5, "pending", (A,), None), ("restated", 5, "live", (B,), None)]
