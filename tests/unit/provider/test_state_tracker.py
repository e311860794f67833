"""The tracker without an event loop: a session is what the provider answered so far, and time is a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ingestor.config.model import Subscription
from ingestor.core.clock import ClockReading
from ingestor.core.entries import UNNAMED, Fact, SubscriptionKey
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
    last_activity_at: float = 0.0  # boottime
    alive: bool = True


@dataclass
class FakeSession:
    connection: FakeConnection
    acknowledged: dict[SubscriptionKey, float] = field(default_factory=dict)  # boottime
    refused: dict[SubscriptionKey, str] = field(default_factory=dict)
    open_rounds: int = 0


def at(seconds: float) -> ClockReading:
    return ClockReading(us(seconds), seconds)


def us(seconds: float) -> int:
    return EPOCH_US + round(seconds * 1_000_000)


class TrackerScenario:
    """A tracker for some subscriptions, and the facts that it recorded."""

    def __init__(self, *subscriptions: Subscription, max_late_us: int = 0) -> None:
        self.facts: list[Fact] = []
        self.subscriptions = {subscription.key: subscription for subscription in subscriptions}
        self.states = SubscriptionStates(self.facts.append)
        self.tracker = StateTracker(SETTINGS, self.subscriptions, self.states, SILENCE_SECONDS, max_late_us)
        self.states.apply("added", self.subscriptions, {}, us(0))

    def follow(self, name: str, seconds: float) -> FakeSession:
        """Use a new session that has no answers yet."""
        session = FakeSession(FakeConnection(name, seconds))
        self.use(session, seconds)
        return session

    def use(self, session: FakeSession, seconds: float) -> None:
        self.tracker.follow(cast("SubscriptionSession", session), at(seconds))

    def live(self, seconds: float = 1) -> FakeSession:
        """Use a session on which every subscription was acknowledged."""
        session = FakeSession(FakeConnection("first", seconds))
        session.acknowledged = dict.fromkeys(self.subscriptions, seconds)
        self.use(session, seconds)
        return session

    def note_answer(self, session: FakeSession, seconds: float) -> None:
        self.tracker.note_answer(cast("SubscriptionSession", session), at(seconds))

    def interrupt(self, seconds: float, from_seconds: float) -> None:
        """What the supervisor does after an interruption."""
        self.tracker.mark_unconfirmed(at(seconds))
        self.states.apply("interrupted", self.subscriptions, {}, us(seconds), us(from_seconds), kind="stood_still")

    def receive(self, first: float, last: float, now: float, *subscriptions: Subscription) -> None:
        spans = {
            self.tracker.channels[subscription.key][0]: ActivitySpan(us(first), us(last))
            for subscription in subscriptions
        }
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
    scenario = TrackerScenario(AAPL, TSLA, ON)
    session = scenario.follow("first", 1)
    session.acknowledged |= {AAPL.key: 1.2, TSLA.key: 1.4}
    session.refused[ON.key] = "not yours"
    scenario.tracker.publish(at(2))
    subscribed, refused = scenario.facts[-2:]
    assert (subscribed.kind, subscribed.subscriptions, subscribed.since_us) == (
        "subscribed",
        (AAPL.key, TSLA.key),
        us(1.4),
    )
    assert subscribed.detail == {"path": PATH, "connection": "first", "count": 2}
    assert (refused.kind, refused.subscriptions, refused.detail["reason"]) == ("refused", (ON.key,), "not yours")
    count = len(scenario.facts)
    scenario.tracker.publish(at(3))
    assert len(scenario.facts) == count, "nothing new, no fact"


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
    scenario = TrackerScenario(AAPL)
    session = scenario.follow("first", 1)
    session.open_rounds = open_rounds
    assert scenario.tracker.timer_boottime == math.inf
    for seconds in answers:
        session.acknowledged[AAPL.key] = seconds
        scenario.note_answer(session, seconds)
    assert scenario.tracker.timer_boottime == pytest.approx(expected)
    scenario.tracker.on_timer(at(expected - 0.01))
    assert scenario.state(AAPL) == "pending"
    scenario.tracker.on_timer(at(expected))
    assert scenario.state(AAPL) == "live"
    assert scenario.tracker.timer_boottime == math.inf


def test_answers_on_another_session_do_not_count() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.follow("first", 1)
    other = FakeSession(FakeConnection("other"), {AAPL.key: 2})
    scenario.note_answer(other, 2)
    assert scenario.tracker.timer_boottime == math.inf
    scenario.tracker.publish(at(3))
    assert scenario.state(AAPL) == "pending"


def test_detach_publishes_what_is_left() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    session = scenario.follow("first", 1)
    session.acknowledged[AAPL.key] = 2
    scenario.note_answer(session, 2)
    scenario.tracker.detach(at(2.01))
    assert (scenario.state(AAPL), scenario.state(TSLA)) == ("live", "pending")
    assert scenario.tracker.session is None
    assert scenario.tracker.timer_boottime == math.inf


def test_new_connection_makes_unanswered_subscriptions_pending() -> None:
    scenario = TrackerScenario(AAPL, TSLA, ON)
    session = scenario.live()
    del session.acknowledged[ON.key]
    scenario.tracker.detach(at(2))
    scenario.disconnect(2, since=1.5)
    assert [scenario.since(subscription) for subscription in (AAPL, TSLA, ON)] == [1.5] * 3
    second = FakeSession(FakeConnection("second"), {AAPL.key: 3}, {TSLA.key: "not yours"})
    scenario.use(second, 4)
    assert [scenario.state(subscription) for subscription in (AAPL, TSLA, ON)] == ["live", "refused", "pending"]


def test_handover_leaves_live_subscriptions_alone() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live().connection.last_activity_at = 9
    count = len(scenario.facts)
    scenario.use(FakeSession(FakeConnection("second"), {AAPL.key: 9}), 10)
    assert len(scenario.facts) == count
    assert scenario.since(AAPL) == 1


def test_handover_from_a_connection_not_heard_since_leaves_a_gap() -> None:
    scenario = TrackerScenario(AAPL, TSLA, ON)
    scenario.live().connection.last_activity_at = 8
    scenario.use(FakeSession(FakeConnection("second"), {AAPL.key: 9, ON.key: 7.5}), 10)
    ended, again = scenario.facts[-3], scenario.facts[-1]
    assert (ended.state, ended.subscriptions, ended.since_us) == ("disconnected", (AAPL.key, TSLA.key), us(8))
    assert (again.state, again.subscriptions, again.since_us) == ("live", (AAPL.key,), us(9))
    assert [scenario.state(subscription) for subscription in (AAPL, TSLA, ON)] == ["live", "pending", "live"]
    assert scenario.since(ON) == 1


def test_refusal_on_new_connection_counts_from_old_last_byte() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    old = scenario.live()
    old.connection.last_activity_at = 8
    scenario.use(FakeSession(FakeConnection("second"), {AAPL.key: 7}, {TSLA.key: "not yours"}), 10)
    assert (scenario.state(TSLA), scenario.since(TSLA)) == ("refused", 8)
    assert scenario.facts[-1].detail == {"path": PATH, "connection": "second", "reason": "not yours"}
    assert scenario.state(AAPL) == "live"


def test_removed_subscription_was_live_until_the_last_byte() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    session = scenario.live()
    session.connection.last_activity_at = 8
    scenario.tracker.remove([TSLA.key], "removed from the config", at(10))
    stopped = scenario.facts[-1]
    assert (stopped.kind, stopped.state, stopped.since_us) == ("stopped", "stopped", us(8))
    assert scenario.states[TSLA.key] is None


# --- silence ---


def test_subscription_becomes_silent_as_of_its_last_data() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    scenario.live()
    scenario.receive(100, 200, 201, TSLA)
    scenario.receive(650, 700, 701, AAPL)
    assert scenario.tracker.detect_silence(800.9, at(801), 0.5) == []
    assert scenario.tracker.detect_silence(801, at(802), 0.5) == [TSLA]
    assert (scenario.state(TSLA), scenario.since(TSLA), scenario.state(AAPL)) == ("silent", 200, "live")
    assert scenario.facts[-1].detail["reason"] == "no data for 600 s"
    assert scenario.tracker.detect_silence(803, at(803), 0.5) == [], "resubscribed just now"
    assert scenario.tracker.detect_silence(1500, at(1500), 0.5) == [TSLA, AAPL]


def test_silence_begins_before_the_last_data_and_ends_with_the_first_if_both_may_be_stamped_late() -> None:
    scenario = TrackerScenario(AAPL, max_late_us=20_000)
    scenario.live()
    scenario.receive(100, 200, 201, AAPL)
    scenario.tracker.detect_silence(801, at(802), 0.5)
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("silent", 199.98)
    scenario.receive(900, 900, 901, AAPL)
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("live", 900)


def test_subscription_without_any_data_is_silent_since_live() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live(5)
    scenario.tracker.detect_silence(605, at(606), 0.5)
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("silent", 5)


def test_simultaneous_silences_make_one_fact_from_the_earliest() -> None:
    scenario = TrackerScenario(AAPL, TSLA, ON)
    scenario.live()
    for subscription, seconds in ((AAPL, 10), (TSLA, 14), (ON, 17)):
        scenario.receive(seconds, seconds, 20, subscription)
    scenario.tracker.detect_silence(700, at(700), 0.5)
    silent = [(fact.subscriptions, fact.since_us) for fact in scenario.facts if fact.kind == "silent"]
    assert silent == [((AAPL.key, TSLA.key), us(10)), ((ON.key,), us(17))]


def test_data_ends_a_silence_as_of_the_first_of_it() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    scenario.live()
    scenario.tracker.detect_silence(601, at(601), 0.5)
    scenario.receive(610, 620, 625, AAPL)
    assert (scenario.state(AAPL), scenario.since(AAPL), scenario.state(TSLA)) == ("live", 610, "silent")
    assert scenario.kinds()[-1] == "heard_again"


def test_simultaneous_recoveries_make_one_fact_from_the_latest() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    scenario.live()
    scenario.tracker.detect_silence(601, at(601), 0.5)
    spans = {
        scenario.tracker.channels[AAPL.key][0]: ActivitySpan(us(610), us(611)),
        scenario.tracker.channels[TSLA.key][0]: ActivitySpan(us(613), us(614)),
    }
    scenario.tracker.note_activity(spans, at(615))
    (again,) = [fact for fact in scenario.facts if fact.kind == "heard_again"]
    assert (set(again.subscriptions), again.since_us) == ({AAPL.key, TSLA.key}, us(613))


def test_ack_by_another_connection_does_not_end_silence() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live()
    scenario.tracker.detect_silence(601, at(601), 0.5)
    scenario.use(FakeSession(FakeConnection("second"), {AAPL.key: 700}), 701)
    assert scenario.state(AAPL) == "silent"


def test_refusal_ends_a_silence() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live()
    scenario.tracker.detect_silence(601, at(601), 0.5)
    second = FakeSession(FakeConnection("second"), {}, {AAPL.key: "not yours"})
    scenario.use(second, 701)
    assert scenario.state(AAPL) == "refused"
    second.refused.clear()
    second.acknowledged[AAPL.key] = 710
    scenario.tracker.publish(at(711))
    assert scenario.state(AAPL) == "live"


def test_nothing_is_silent_without_a_session() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live()
    scenario.tracker.detach(at(2))
    scenario.disconnect(2, since=1.5)
    assert scenario.tracker.detect_silence(1000, at(1000), 0.5) == []
    assert scenario.state(AAPL) == "disconnected"


@pytest.mark.parametrize(
    ("subscriptions", "tickers"),
    [
        pytest.param((AAPL, TSLA), [["AAPL"], ["TSLA"]], id="by ticker"),
        pytest.param((AAPL,), [["AAPL", UNNAMED]], id="the only one: an empty list too"),
        pytest.param((AAPL, ALL), [["AAPL"], [""]], id="all tickers: any data"),
    ],
)
def test_channels_tell_which_data_counts(subscriptions: tuple[Subscription, ...], tickers: list[list[str]]) -> None:
    assert list(TrackerScenario(*subscriptions).tracker.channels.values()) == [
        tuple((PATH, "{}", ticker) for ticker in names) for names in tickers
    ]


def test_channels_are_rebuilt_after_a_removal() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    del scenario.subscriptions[TSLA.key]
    scenario.tracker.rebuild_channels()
    assert scenario.tracker.channels == {AAPL.key: ((PATH, "{}", "AAPL"), (PATH, "{}", UNNAMED))}


def test_only_subscription_is_silent_on_data_of_another_ticker() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live()
    for ticker, silent in ((UNNAMED, False), ("TSLA", True)):
        now = 1000 + 1000 * silent
        scenario.tracker.note_activity(
            {(PATH, "{}", name): ActivitySpan(us(now), us(now)) for name in ("", ticker)}, at(now)
        )
        assert bool(scenario.tracker.detect_silence(now, at(now), 0.5)) is silent
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("silent", 1000)


def test_first_and_last_data_of_either_channel_count() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live()
    assert scenario.tracker.detect_silence(700, at(700), 0.5)
    spans = {"AAPL": ActivitySpan(us(712), us(713)), UNNAMED: ActivitySpan(us(710), us(711))}
    scenario.tracker.note_activity({(PATH, "{}", name): span for name, span in spans.items()}, at(714))
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("live", 710)
    assert scenario.tracker.detect_silence(1400, at(1400), 0.5)
    assert scenario.since(AAPL) == 713


def test_data_from_before_the_clock_was_set_back_lies_not_ahead() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    scenario.live()
    scenario.tracker.detect_silence(601, at(601), 0.5)
    scenario.receive(4000, 4200, 610, AAPL)  # received by a clock that was an hour ahead, decoded later
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("live", 610)
    scenario.tracker.detect_silence(1300, at(1300), 0.5)
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("silent", 610)


def test_time_of_the_last_byte_is_by_the_clock_as_it_is_set_now() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live().connection.last_activity_at = 20
    an_hour_back = ClockReading(us(30 - 3600), 30)
    assert scenario.tracker.heard_us(an_hour_back) == us(20 - 3600)
    scenario.tracker.remove([AAPL.key], "removed from the config", an_hour_back)
    assert scenario.facts[-1].since_us == us(20 - 3600)


# --- interruptions ---


def test_sign_of_life_after_interruption_is_live_from_its_end() -> None:
    scenario = TrackerScenario(AAPL, TSLA)
    session = scenario.live()
    scenario.interrupt(50, from_seconds=20)
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("silent", 20)
    for check in (50.1, 50.2):
        assert scenario.tracker.timer_boottime == pytest.approx(check)
        scenario.tracker.on_timer(at(check))
        assert scenario.state(AAPL) == "silent"
    session.connection.last_activity_at = 50.25
    scenario.tracker.on_timer(at(50.35))
    assert [(scenario.state(subscription), scenario.since(subscription)) for subscription in (AAPL, TSLA)] == [
        ("live", 50),
        ("live", 50),
    ]
    assert scenario.kinds()[-2:] == ["stood_still", "heard_again"]
    assert scenario.tracker.timer_boottime == math.inf


def test_later_of_two_interruptions_counts() -> None:
    scenario = TrackerScenario(AAPL)
    session = scenario.live()
    scenario.interrupt(50, from_seconds=20)
    session.connection.last_activity_at = 50.05
    scenario.interrupt(50.06, from_seconds=50.05)
    scenario.tracker.on_timer(at(50.2))
    assert scenario.state(AAPL) == "silent"
    session.connection.last_activity_at = 50.25
    scenario.tracker.on_timer(at(50.35))
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("live", 50.06)


def test_answers_do_not_confirm_an_unconfirmed_subscription() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live()
    scenario.interrupt(50, from_seconds=20)
    scenario.tracker.publish(at(50.05))
    assert scenario.state(AAPL) == "silent"


def leave_alone(_: TrackerScenario, __: FakeSession) -> None:
    pass


def check_once_more(scenario: TrackerScenario, _: FakeSession) -> None:
    scenario.tracker.on_timer(at(50.15))


@pytest.mark.parametrize("meanwhile", [leave_alone, check_once_more])
def test_connection_that_ends_unconfirmed_was_not_live_again(
    meanwhile: Callable[[TrackerScenario, FakeSession], Any],
) -> None:
    scenario = TrackerScenario(AAPL)
    session = scenario.live()
    scenario.interrupt(50, from_seconds=20)
    session.connection.alive = False
    meanwhile(scenario, session)
    scenario.tracker.detach(at(50.2))
    scenario.disconnect(50.2, since=20)
    assert [fact.state for fact in scenario.facts if fact.state] == ["pending", "live", "silent", "disconnected"]
    assert scenario.tracker.timer_boottime == math.inf


def test_handover_after_an_interruption_makes_live_at_once() -> None:
    scenario = TrackerScenario(AAPL)
    scenario.live()
    scenario.interrupt(50, from_seconds=20)
    scenario.use(FakeSession(FakeConnection("second"), {AAPL.key: 51}), 51.5)
    assert (scenario.state(AAPL), scenario.since(AAPL), scenario.kinds()[-1]) == ("live", 51, "subscribed")
    assert scenario.tracker.timer_boottime == math.inf


def test_silence_counts_from_an_interruption() -> None:
    scenario = TrackerScenario(AAPL)
    session = scenario.live()
    scenario.interrupt(500, from_seconds=490)
    session.connection.last_activity_at = 500.05
    scenario.tracker.on_timer(at(500.15))
    scenario.tracker.detect_silence(1000, at(1000), 0.5)
    assert scenario.state(AAPL) == "live"
    scenario.tracker.detect_silence(1100, at(1100), 0.5)
    assert (scenario.state(AAPL), scenario.since(AAPL)) == ("silent", 500)
