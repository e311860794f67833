"""The tracker without an event loop: a session is what the provider answered so far, and time is a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ingestor.config.model import Subscription
from ingestor.core.clock import ClockReading
from ingestor.core.entries import Fact, SubscriptionKey
from ingestor.provider.socket.connection import ConnectionSettings
from ingestor.provider.subscriptions.activity import ActivitySpan
from ingestor.provider.subscriptions.session import SubscriptionSession
from ingestor.provider.subscriptions.state_tracker import StateTracker
from ingestor.provider.subscriptions.states import SubscriptionStates

PATH = "/real-time/crowd-sentiment"
AAPL = Subscription(PATH, "get", {"ticker": "AAPL"})
TSLA = Subscription(PATH, "get", {"ticker": "TSLA"})
ON = Subscription(PATH, "get", {"ticker": "ON"})
ALL = Subscription(PATH)
SETTINGS = ConnectionSettings(url="http://127.0.0.1:9", path=PATH, params="{}", events=("res",))
SILENCE_SECONDS = 600
EPOCH_US = 1_000_000_000  # of the wall clock, when the boottime is 0


@dataclass
class FakeConnection:
    id: str
    last_activity_us: int = 0
    last_activity_at: float = 0.0  # boottime
    alive: bool = True


@dataclass
class FakeSession:
    connection: FakeConnection
    acknowledged: dict[SubscriptionKey, int] = field(default_factory=dict)
    refused: dict[SubscriptionKey, str] = field(default_factory=dict)
    open_rounds: int = 0


def at(seconds: float) -> ClockReading:
    return ClockReading(us(seconds), seconds)


def us(seconds: float) -> int:
    return EPOCH_US + round(seconds * 1_000_000)


class World:
    """A tracker for some subscriptions, and the facts that it recorded."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self.facts: list[Fact] = []
        self.subscriptions = {subscription.key: subscription for subscription in subscriptions}
        self.states = SubscriptionStates(self.facts.append)
        self.tracker = StateTracker(SETTINGS, self.subscriptions, self.states, SILENCE_SECONDS)
        self.states.apply("added", self.subscriptions, {}, us(0))

    def follow(self, name: str, seconds: float) -> FakeSession:
        """Use a new session that has no answers yet."""
        session = FakeSession(FakeConnection(name, us(seconds), seconds))
        self.use(session, seconds)
        return session

    def use(self, session: FakeSession, seconds: float) -> None:
        self.tracker.follow(cast("SubscriptionSession", session), at(seconds))

    def live(self, seconds: float = 1) -> FakeSession:
        """Use a session on which every subscription was acknowledged."""
        session = FakeSession(FakeConnection("first", us(seconds), seconds))
        session.acknowledged = dict.fromkeys(self.subscriptions, us(seconds))
        self.use(session, seconds)
        return session

    def note_answer(self, session: FakeSession, seconds: float) -> None:
        self.tracker.note_answer(cast("SubscriptionSession", session), at(seconds))

    def interrupt(self, seconds: float, from_seconds: float) -> None:
        """What the supervisor does after an interruption."""
        self.tracker.mark_unconfirmed(at(seconds))
        self.states.apply("interrupted", self.subscriptions, {}, us(seconds), us(from_seconds), kind="stood_still")

    def receive(self, first: float, last: float, now: float, *subscriptions: Subscription) -> None:
        spans = {self.tracker.channels[one.key]: ActivitySpan(us(first), us(last)) for one in subscriptions}
        self.tracker.note_activity(spans, at(now))

    def disconnect(self, seconds: float, since: float) -> None:
        self.states.apply("disconnected", self.subscriptions, {}, us(seconds), us(since))

    def state(self, subscription: Subscription) -> str:
        current = self.states[subscription.key]
        return current.state if current else "new"

    def since(self, subscription: Subscription) -> float:
        current = self.states[subscription.key]
        return (current.since_us - EPOCH_US) / 1_000_000 if current else -1.0

    def kinds(self) -> list[str]:
        return [fact.kind for fact in self.facts]


# --- answers ---


def test_answers_become_one_fact_for_each_outcome() -> None:
    world = World(AAPL, TSLA, ON)
    session = world.follow("first", 1)
    session.acknowledged |= {AAPL.key: us(1.2), TSLA.key: us(1.4)}
    session.refused[ON.key] = "not yours"
    world.tracker.publish(at(2))
    subscribed, refused = world.facts[-2:]
    assert (subscribed.kind, subscribed.subscriptions, subscribed.since_us) == (
        "subscribed",
        (AAPL.key, TSLA.key),
        us(1.4),
    )
    assert subscribed.detail == {"path": PATH, "connection": "first", "count": 2}
    assert (refused.kind, refused.subscriptions, refused.detail["reason"]) == ("refused", (ON.key,), "not yours")
    count = len(world.facts)
    world.tracker.publish(at(3))
    assert len(world.facts) == count, "nothing new, no fact"


@pytest.mark.parametrize(
    ("answers", "open_rounds", "expected"),
    [
        pytest.param([5.0], 0, 5.1, id="one"),
        pytest.param([5.0, 5.05], 0, 5.15, id="the last one counts"),
        pytest.param([5.0], 1, 6.0, id="more are due"),
        pytest.param([5.0 + n / 10 for n in range(200)], 1, 15.0, id="at most ten seconds after the first"),
    ],
)
def test_publishing_waits_for_more_answers(answers: list[float], open_rounds: int, expected: float) -> None:
    world = World(AAPL)
    session = world.follow("first", 1)
    session.open_rounds = open_rounds
    assert world.tracker.timer_boottime == math.inf
    for seconds in answers:
        session.acknowledged[AAPL.key] = us(seconds)
        world.note_answer(session, seconds)
    assert world.tracker.timer_boottime == pytest.approx(expected)
    world.tracker.on_timer(at(expected - 0.01))
    assert world.state(AAPL) == "pending"
    world.tracker.on_timer(at(expected))
    assert world.state(AAPL) == "live"
    assert world.tracker.timer_boottime == math.inf


def test_answers_on_another_session_do_not_count() -> None:
    world = World(AAPL)
    world.follow("first", 1)
    other = FakeSession(FakeConnection("other"), {AAPL.key: us(2)})
    world.note_answer(other, 2)
    assert world.tracker.timer_boottime == math.inf
    world.tracker.publish(at(3))
    assert world.state(AAPL) == "pending"


def test_detach_publishes_what_is_left() -> None:
    world = World(AAPL, TSLA)
    session = world.follow("first", 1)
    session.acknowledged[AAPL.key] = us(2)
    world.note_answer(session, 2)
    world.tracker.detach(at(2.01))
    assert (world.state(AAPL), world.state(TSLA)) == ("live", "pending")
    assert world.tracker.session is None
    assert world.tracker.timer_boottime == math.inf


def test_new_connection_makes_unanswered_subscriptions_pending() -> None:
    world = World(AAPL, TSLA, ON)
    session = world.live()
    del session.acknowledged[ON.key]
    world.tracker.detach(at(2))
    world.disconnect(2, since=1.5)
    assert [world.since(one) for one in (AAPL, TSLA, ON)] == [1.5] * 3
    second = FakeSession(FakeConnection("second"), {AAPL.key: us(3)}, {TSLA.key: "not yours"})
    world.use(second, 4)
    assert [world.state(one) for one in (AAPL, TSLA, ON)] == ["live", "refused", "pending"]


def test_handover_leaves_live_subscriptions_alone() -> None:
    world = World(AAPL)
    world.live()
    count = len(world.facts)
    world.use(FakeSession(FakeConnection("second"), {AAPL.key: us(9)}), 10)
    assert len(world.facts) == count
    assert world.since(AAPL) == 1


def test_refusal_by_the_new_connection_counts_from_the_old_ones_last_byte() -> None:
    world = World(AAPL, TSLA)
    old = world.live()
    old.connection.last_activity_us = us(8)
    world.use(FakeSession(FakeConnection("second"), {AAPL.key: us(9)}, {TSLA.key: "not yours"}), 10)
    assert (world.state(TSLA), world.since(TSLA)) == ("refused", 8)
    assert world.facts[-1].detail == {"path": PATH, "connection": "second", "reason": "not yours"}
    assert world.state(AAPL) == "live"


def test_removed_subscription_was_live_until_the_last_byte() -> None:
    world = World(AAPL, TSLA)
    session = world.live()
    session.connection.last_activity_us = us(8)
    world.tracker.remove([TSLA.key], "removed from the config", at(10))
    stopped = world.facts[-1]
    assert (stopped.kind, stopped.state, stopped.since_us) == ("stopped", "stopped", us(8))
    assert world.states[TSLA.key] is None


# --- silence ---


def test_subscription_without_data_becomes_silent_as_of_its_last_data() -> None:
    world = World(AAPL, TSLA)
    world.live()
    world.receive(100, 200, 201, TSLA)
    world.receive(650, 700, 701, AAPL)
    assert world.tracker.detect_silence(800.9, at(801), 0.5) == []
    assert world.tracker.detect_silence(801, at(802), 0.5) == [TSLA]
    assert (world.state(TSLA), world.since(TSLA), world.state(AAPL)) == ("silent", 200, "live")
    assert world.facts[-1].detail["reason"] == "no data for 600 s"
    assert world.tracker.detect_silence(803, at(803), 0.5) == [], "resubscribed just now"
    assert world.tracker.detect_silence(1500, at(1500), 0.5) == [TSLA, AAPL]


def test_subscription_that_never_had_data_is_silent_since_it_was_live() -> None:
    world = World(AAPL)
    world.live(5)
    world.tracker.detect_silence(605, at(606), 0.5)
    assert (world.state(AAPL), world.since(AAPL)) == ("silent", 5)


def test_silences_that_began_together_make_one_fact_as_of_the_earliest() -> None:
    world = World(AAPL, TSLA, ON)
    world.live()
    for subscription, seconds in ((AAPL, 10), (TSLA, 14), (ON, 17)):
        world.receive(seconds, seconds, 20, subscription)
    world.tracker.detect_silence(700, at(700), 0.5)
    silent = [(fact.subscriptions, fact.since_us) for fact in world.facts if fact.kind == "silent"]
    assert silent == [((AAPL.key, TSLA.key), us(10)), ((ON.key,), us(17))]


def test_data_ends_a_silence_as_of_the_first_of_it() -> None:
    world = World(AAPL, TSLA)
    world.live()
    world.tracker.detect_silence(601, at(601), 0.5)
    world.receive(610, 620, 625, AAPL)
    assert (world.state(AAPL), world.since(AAPL), world.state(TSLA)) == ("live", 610, "silent")
    assert world.kinds()[-1] == "heard_again"


def test_silences_that_ended_together_make_one_fact_as_of_the_latest() -> None:
    world = World(AAPL, TSLA)
    world.live()
    world.tracker.detect_silence(601, at(601), 0.5)
    spans = {
        world.tracker.channels[AAPL.key]: ActivitySpan(us(610), us(611)),
        world.tracker.channels[TSLA.key]: ActivitySpan(us(613), us(614)),
    }
    world.tracker.note_activity(spans, at(615))
    (again,) = [fact for fact in world.facts if fact.kind == "heard_again"]
    assert (set(again.subscriptions), again.since_us) == ({AAPL.key, TSLA.key}, us(613))


def test_acknowledgement_by_another_connection_does_not_end_a_silence() -> None:
    world = World(AAPL)
    world.live()
    world.tracker.detect_silence(601, at(601), 0.5)
    world.use(FakeSession(FakeConnection("second"), {AAPL.key: us(700)}), 701)
    assert world.state(AAPL) == "silent"


def test_refusal_ends_a_silence() -> None:
    world = World(AAPL)
    world.live()
    world.tracker.detect_silence(601, at(601), 0.5)
    second = FakeSession(FakeConnection("second"), {}, {AAPL.key: "not yours"})
    world.use(second, 701)
    assert world.state(AAPL) == "refused"
    second.refused.clear()
    second.acknowledged[AAPL.key] = us(710)
    world.tracker.publish(at(711))
    assert world.state(AAPL) == "live"


def test_nothing_is_silent_without_a_session() -> None:
    world = World(AAPL)
    world.live()
    world.tracker.detach(at(2))
    world.disconnect(2, since=1.5)
    assert world.tracker.detect_silence(1000, at(1000), 0.5) == []
    assert world.state(AAPL) == "disconnected"


@pytest.mark.parametrize(
    ("subscriptions", "tickers"),
    [
        pytest.param((AAPL, TSLA), ["AAPL", "TSLA"], id="by ticker"),
        pytest.param((AAPL,), [""], id="the only one: any data"),
        pytest.param((AAPL, ALL), ["AAPL", ""], id="all tickers: any data"),
    ],
)
def test_channels_tell_which_data_counts(subscriptions: tuple[Subscription, ...], tickers: list[str]) -> None:
    assert list(World(*subscriptions).tracker.channels.values()) == [(PATH, "{}", ticker) for ticker in tickers]


def test_channels_are_rebuilt_after_a_removal() -> None:
    world = World(AAPL, TSLA)
    del world.subscriptions[TSLA.key]
    world.tracker.rebuild_channels()
    assert world.tracker.channels == {AAPL.key: (PATH, "{}", "")}


# --- interruptions ---


def test_sign_of_life_after_an_interruption_makes_live_as_of_its_end() -> None:
    world = World(AAPL, TSLA)
    session = world.live()
    world.interrupt(50, from_seconds=20)
    assert (world.state(AAPL), world.since(AAPL)) == ("silent", 20)
    for check in (50.1, 50.2):
        assert world.tracker.timer_boottime == pytest.approx(check)
        world.tracker.on_timer(at(check))
        assert world.state(AAPL) == "silent"
    session.connection.last_activity_at = 50.25
    world.tracker.on_timer(at(50.35))
    assert [(world.state(one), world.since(one)) for one in (AAPL, TSLA)] == [("live", 50), ("live", 50)]
    assert world.kinds()[-2:] == ["stood_still", "heard_again"]
    assert world.tracker.timer_boottime == math.inf


def test_later_of_two_interruptions_counts() -> None:
    world = World(AAPL)
    session = world.live()
    world.interrupt(50, from_seconds=20)
    session.connection.last_activity_at = 50.05
    world.interrupt(50.06, from_seconds=50.05)
    world.tracker.on_timer(at(50.2))
    assert world.state(AAPL) == "silent"
    session.connection.last_activity_at = 50.25
    world.tracker.on_timer(at(50.35))
    assert (world.state(AAPL), world.since(AAPL)) == ("live", 50.06)


def test_answers_do_not_confirm_an_unconfirmed_subscription() -> None:
    world = World(AAPL)
    world.live()
    world.interrupt(50, from_seconds=20)
    world.tracker.publish(at(50.05))
    assert world.state(AAPL) == "silent"


def leave_alone(_: World, __: FakeSession) -> None:
    pass


def check_once_more(world: World, _: FakeSession) -> None:
    world.tracker.on_timer(at(50.15))


@pytest.mark.parametrize("meanwhile", [leave_alone, check_once_more])
def test_connection_that_ends_unconfirmed_was_not_live_again(meanwhile: Callable[[World, FakeSession], Any]) -> None:
    world = World(AAPL)
    session = world.live()
    world.interrupt(50, from_seconds=20)
    session.connection.alive = False
    meanwhile(world, session)
    world.tracker.detach(at(50.2))
    world.disconnect(50.2, since=20)
    assert [fact.state for fact in world.facts if fact.state] == ["pending", "live", "silent", "disconnected"]
    assert world.tracker.timer_boottime == math.inf


def test_handover_after_an_interruption_makes_live_at_once() -> None:
    world = World(AAPL)
    world.live()
    world.interrupt(50, from_seconds=20)
    world.use(FakeSession(FakeConnection("second"), {AAPL.key: us(51)}), 51.5)
    assert (world.state(AAPL), world.since(AAPL), world.kinds()[-1]) == ("live", 51, "subscribed")
    assert world.tracker.timer_boottime == math.inf


def test_silence_counts_from_an_interruption() -> None:
    world = World(AAPL)
    session = world.live()
    world.interrupt(500, from_seconds=490)
    session.connection.last_activity_at = 500.05
    world.tracker.on_timer(at(500.15))
    world.tracker.detect_silence(1000, at(1000), 0.5)
    assert world.state(AAPL) == "live"
    world.tracker.detect_silence(1100, at(1100), 0.5)
    assert (world.state(AAPL), world.since(AAPL)) == ("silent", 500)
