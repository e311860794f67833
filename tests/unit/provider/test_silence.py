from __future__ import annotations

from itertools import pairwise

import pytest

from ingestor.provider.subscriptions.silence import SilenceDetector

A, B = ("/p", "get", '{"ticker":"A"}'), ("/p", "get", '{"ticker":"B"}')


@pytest.fixture
def silences() -> SilenceDetector:
    """Both are listened for since 100; ten minutes are too long."""
    made = SilenceDetector(600)
    made.listen([A, B], at=100)
    return made


def test_who_had_no_data_for_the_limit_is_found_once(silences: SilenceDetector) -> None:
    assert silences.heard(A, 150) is False
    assert silences.found(699.9) == []
    assert silences.found(700) == [B]
    assert silences.found(701) == []
    assert (A in silences, B in silences) == (False, True)


def test_data_ends_a_silence_and_the_next_one_is_found_again(silences: SilenceDetector) -> None:
    silences.found(700)
    assert silences.heard(B, 800) is True
    assert silences.heard(B, 801) is False
    assert silences.found(1400) == []
    assert silences.found(1401) == [B]


def test_a_silence_counts_from_the_moment_at_which_data_may_be_expected(silences: SilenceDetector) -> None:
    silences.listen([A], at=500)
    assert silences.found(1099) == [B]
    assert silences.found(1100) == [A]


def test_what_is_no_longer_listened_for_is_not_silent(silences: SilenceDetector) -> None:
    silences.found(700)
    silences.ignore([A, B])
    assert B not in silences
    assert silences.due(10_000, 0.5) == []
    assert silences.heard(A, 800) is False
    assert silences.found(10_000) == []


def test_the_silent_are_asked_for_at_once_and_then_ever_more_rarely_up_to_once_an_hour(
    silences: SilenceDetector,
) -> None:
    silences.ignore([A])
    silences.found(700)
    asked_at = [second for second in range(700, 20_000) if silences.due(second, chance=1.0)]
    assert [later - earlier for earlier, later in pairwise(asked_at)] == [600, 1200, 2400, *[3600] * 4]


def test_a_limit_above_the_cap_is_the_shortest_wait() -> None:
    silences = SilenceDetector(7200)
    silences.listen([A], at=0)
    silences.found(7200)
    assert silences.due(7200, chance=1.0) == [A]
    assert silences.due(14_399, chance=1.0) == []
    assert silences.due(14_400, chance=1.0) == [A]
