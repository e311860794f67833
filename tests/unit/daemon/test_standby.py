"""What the answers of the database mean for a daemon that stands by. Times are boottimes."""

from __future__ import annotations

import pytest

from ingestor.daemon.standby import Standing
from ingestor.store.receiver_lease import LeaseAnswer, LeaseHolder

A, B = LeaseHolder(1, "a", 3.0, 12.0), LeaseHolder(2, "b", 1.0, 14.0)
OURS, FREE = LeaseAnswer(True), LeaseAnswer(False)


@pytest.fixture
def standing() -> Standing:
    return Standing(lease_seconds=15)


def test_lease_ends_15_seconds_after_the_request_was_sent(standing: Standing) -> None:
    assert standing.note(OURS, 100) == "taken"
    assert standing.held_until == 115
    assert standing.note(OURS, 105) == ""
    assert standing.held_until == 120


def test_renewal_by_another_instance_ends_the_lease_at_once(standing: Standing) -> None:
    standing.note(OURS, 100)
    assert standing.note(LeaseAnswer(False, A), 105) == "other"
    assert standing.held_until < 0
    assert standing.is_standby(105)


def test_another_holder_is_reported_once(standing: Standing) -> None:
    assert standing.note(LeaseAnswer(False, A), 100) == "other"
    assert standing.note(LeaseAnswer(False, A), 105) == ""
    assert standing.note(LeaseAnswer(False, B), 110) == "other"


def test_takeover_is_reported_with_the_holder_before(standing: Standing) -> None:
    standing.note(LeaseAnswer(False, A), 100)
    assert standing.note(LeaseAnswer(True, A), 116) == "taken"
    assert standing.other is None


def test_expired_lease_is_reported_once_and_regained(standing: Standing) -> None:
    standing.note(OURS, 100)
    assert [standing.has_expired(at) for at in (114.9, 115, 120)] == [False, True, False]
    assert standing.note(OURS, 130) == "regained"
    assert [standing.has_expired(at) for at in (144.9, 145)] == [False, True]


def test_lease_that_another_had_meanwhile_is_taken_over(standing: Standing) -> None:
    standing.note(OURS, 100)
    standing.has_expired(115)
    assert standing.note(LeaseAnswer(True, B), 140) == "taken"


def test_standby_is_proven_for_the_time_of_a_lease(standing: Standing) -> None:
    assert not standing.is_standby(0)
    standing.note(LeaseAnswer(False, A), 100)
    assert [standing.is_standby(at) for at in (100, 114.9, 115)] == [True, True, False]


def test_free_lease_that_is_not_for_us_changes_nothing(standing: Standing) -> None:
    assert standing.note(FREE, 100) == ""
    assert not standing.is_standby(100)
    standing.note(OURS, 105)
    assert standing.note(FREE, 110) == ""  # such as while this run registers again after a failover
    assert standing.held_until == 120


def test_released_lease_is_taken_again_as_a_new_one(standing: Standing) -> None:
    standing.note(OURS, 100)
    standing.give_up()
    assert not standing.has_expired(200)
    assert standing.note(OURS, 110) == "taken"
