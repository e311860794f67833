from __future__ import annotations

from ingestor.provider.subscriptions.activity import ActivitySpan, ActivityTracker

A, B = ("/p", "{}", "A"), ("/p", "{}", "B")


def test_what_was_heard_since_the_last_time_is_told_once_with_its_first_and_its_last() -> None:
    heard = ActivityTracker()
    heard.set_channels([A, B])
    heard.record({A: 10}, 1)
    heard.record({A: 20, B: 20}, 2)
    heard.record({A: 30}, 5)
    assert heard.take() == {A: ActivitySpan(10, 30), B: ActivitySpan(20, 20)}
    assert heard.take() == {}
    assert heard.upto_seq == 5


def test_only_what_is_wanted_is_kept_whatever_the_provider_names() -> None:
    heard = ActivityTracker()
    heard.set_channels([A])
    heard.record({A: 10} | {("/p", "{}", f"made up {n}"): 10 for n in range(1000)}, 1)
    assert heard.take() == {A: ActivitySpan(10, 10)}
