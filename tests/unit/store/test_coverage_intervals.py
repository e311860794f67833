from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestor.store.write.batch import SubscriptionRow, Transition
from ingestor.store.write.coverage_intervals import CoverageInterval, CoverageTimeline

AAPL = SubscriptionRow("/real-time/crowd-sentiment", "get", '{"ticker":"AAPL"}', "crowd-sentiment", "AAPL")
TSLA = AAPL._replace(params='{"ticker":"TSLA"}', ticker="TSLA")
IDS = {AAPL: 1, TSLA: 2}


def transition_to(state: str, seq: int, since_us: int, *subscriptions: SubscriptionRow) -> Transition:
    return Transition(seq, since_us, state, "", subscriptions)


def changes(timeline: CoverageTimeline) -> list[tuple[int, str, int, int | None]]:
    return [(i.subscription_id, i.state, i.started_us, i.ended_us) for i in timeline.changed_intervals]


def test_interval_ends_where_the_next_starts() -> None:
    timeline = CoverageTimeline([])
    for transition in (
        transition_to("pending", 1, 10, AAPL),
        transition_to("live", 2, 20, AAPL),
        transition_to("disconnected", 3, 25, AAPL),
    ):
        timeline.apply(transition, IDS)
    assert changes(timeline) == [(1, "pending", 10, 20), (1, "live", 20, 25), (1, "disconnected", 25, None)]


def test_repeated_state_extends_interval() -> None:
    timeline = CoverageTimeline([])
    timeline.apply(transition_to("live", 1, 10, AAPL), IDS)
    timeline.apply(transition_to("live", 2, 20, AAPL), IDS)
    assert changes(timeline) == [(1, "live", 10, None)]


def test_crash_closes_open_intervals_unless_stopped() -> None:
    stored = [
        CoverageInterval(subscription_id=1, start_seq=1, started_us=10, state="live", reason="", stored=True),
        CoverageInterval(subscription_id=2, start_seq=2, started_us=10, state="stopped", reason="", stored=True),
    ]
    timeline = CoverageTimeline(stored)
    timeline.apply(transition_to("crashed", 9, 15), {})
    assert changes(timeline) == [(1, "live", 10, 15), (1, "crashed", 15, None)]


@given(st.lists(st.tuples(st.sampled_from(["live", "pending", "silent"]), st.integers(0, 100)), min_size=1))
def test_intervals_never_overlap_or_leave_holes(steps: list[tuple[str, int]]) -> None:
    timeline = CoverageTimeline([])
    for seq, (state, since_us) in enumerate(steps, 1):
        timeline.apply(transition_to(state, seq, since_us, AAPL), IDS)
    intervals = timeline.changed_intervals
    assert [i.ended_us for i in intervals[:-1]] == [i.started_us for i in intervals[1:]]
    assert all(i.started_us <= (i.ended_us or i.started_us) for i in intervals)
    assert intervals[-1].ended_us is None
    assert intervals[-1].state == steps[-1][0]


def test_unwanted_subscription_becomes_stopped() -> None:
    stored = [
        CoverageInterval(subscription_id=1, start_seq=1, started_us=10, state="live", reason="", stored=True),
        CoverageInterval(subscription_id=2, start_seq=2, started_us=10, state="crashed", reason="", stored=True),
    ]
    timeline = CoverageTimeline(stored)
    timeline.apply(Transition(9, 15, "stopped", "not in the config any more", [AAPL], others=True), IDS)
    assert changes(timeline) == [(2, "crashed", 10, 15), (2, "stopped", 15, None)]


def stored(number: int, state: str, started_us: int, group: tuple[str, str] = ("", "")) -> CoverageInterval:
    return CoverageInterval(
        subscription_id=number,
        start_seq=number,
        started_us=started_us,
        state=state,
        reason="why",
        stored=True,
        group=group,
    )


def step(seq: int, until_us: int, since_us: int) -> Transition:
    return Transition(seq, since_us, "", "the clock was set", (), until_us=until_us)


def test_every_state_goes_on_by_a_clock_that_was_set_back() -> None:
    timeline = CoverageTimeline([stored(1, "disconnected", 900), stored(2, "stopped", 2000)])
    timeline.apply(step(9, until_us=1000, since_us=100), {})
    timeline.apply(transition_to("live", 10, 150, AAPL), IDS)
    assert changes(timeline) == [
        (1, "disconnected", 900, 1000),
        (1, "disconnected", 100, 150),
        (2, "stopped", 2000, 2000),
        (2, "stopped", 100, None),
        (1, "live", 150, None),
    ]
    assert timeline.stepped_back_to_us == 100
    assert {interval.reason for interval in timeline.changed_intervals[:4]} == {"why"}


def test_time_that_the_clock_jumped_over_is_in_no_interval() -> None:
    timeline = CoverageTimeline([stored(1, "silent", 900)])
    timeline.apply(step(9, until_us=1000, since_us=5000), {})
    assert changes(timeline) == [(1, "silent", 900, 1000), (1, "silent", 5000, None)]
    assert timeline.stepped_back_to_us is None


def test_crash_of_a_connection_ends_only_its_own_intervals() -> None:
    group = (AAPL.path, '{"period":"30"}')
    timeline = CoverageTimeline(
        [stored(1, "live", 10, group), stored(2, "live", 10, (AAPL.path, "{}")), stored(3, "stopped", 10, group)]
    )
    timeline.apply(Transition(9, 15, "crashed", "", (), group=group), {})
    timeline.apply(transition_to("crashed", 10, 20), {})
    assert changes(timeline) == [
        (1, "live", 10, 15),
        (1, "crashed", 15, None),
        (2, "live", 10, 20),
        (2, "crashed", 20, None),
    ]


def test_group_of_an_interval_lasts_through_its_states() -> None:
    group = (AAPL.path, "{}")
    timeline = CoverageTimeline([])
    timeline.apply(
        transition_to("pending", 1, 10, AAPL._replace(connection_params="{}")),
        {AAPL._replace(connection_params="{}"): 1},
    )
    timeline.apply(step(2, until_us=15, since_us=15), {})
    timeline.apply(Transition(3, 20, "crashed", "", (), group=group), {})
    assert changes(timeline)[-1] == (1, "crashed", 20, None)


def test_instance_that_begins_late_was_not_live_before_it() -> None:
    """Its spool no longer has what it received before that."""
    timeline = CoverageTimeline([], not_before_us=15)
    timeline.apply(transition_to("live", 8, 10, AAPL), IDS)
    timeline.apply(transition_to("silent", 9, 20, AAPL), IDS)
    assert changes(timeline) == [(1, "live", 15, 20), (1, "silent", 20, None)]
