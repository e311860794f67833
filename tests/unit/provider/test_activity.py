from __future__ import annotations

from ingestor.provider.subscriptions.activity import ActivitySpan, ActivityTracker

A, B = ("/p", "{}", "A"), ("/p", "{}", "B")


def test_take_returns_first_and_last_time_once() -> None:
    activity = ActivityTracker()
    activity.set_channels([A, B])
    activity.record({A: 10}, 1)
    activity.record({A: 20, B: 20}, 2)
    activity.record({A: 30}, 5)
    assert activity.take() == {A: ActivitySpan(10, 30), B: ActivitySpan(20, 20)}
    assert activity.take() == {}
    assert activity.upto_seq == 5


def test_unknown_channels_are_not_kept() -> None:
    activity = ActivityTracker()
    activity.set_channels([A])
    activity.record({A: 10} | {("/p", "{}", f"made up {n}"): 10 for n in range(1000)}, 1)
    assert activity.take() == {A: ActivitySpan(10, 10)}
