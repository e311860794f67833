from __future__ import annotations

from itertools import pairwise

import pytest

from ingestor.provider.subscriptions.silence import SilenceDetector

A, B = ("/p", "get", '{"ticker":"A"}'), ("/p", "get", '{"ticker":"B"}')


@pytest.fixture
def silence() -> SilenceDetector:
    """Expects data of A and B since 100, for ten minutes at most."""
    detector = SilenceDetector(600)
    detector.expect([A, B], 100)
    return detector


def test_subscription_without_data_is_detected_once(silence: SilenceDetector) -> None:
    assert silence.note_data(A, 150) is False
    assert silence.detect(699.9) == []
    assert silence.detect(700) == [B]
    assert silence.detect(701) == []
    assert (A in silence, B in silence) == (False, True)


def test_data_ends_silence_until_the_next(silence: SilenceDetector) -> None:
    silence.detect(700)
    assert silence.note_data(B, 800) is True
    assert silence.note_data(B, 801) is False
    assert silence.detect(1400) == []
    assert silence.detect(1401) == [B]


def test_silence_counts_from_when_data_is_expected(silence: SilenceDetector) -> None:
    silence.expect([A], 500)
    assert silence.detect(1099) == [B]
    assert silence.detect(1100) == [A]


def test_ignored_subscription_is_not_silent(silence: SilenceDetector) -> None:
    silence.detect(700)
    silence.ignore([A, B])
    assert B not in silence
    assert silence.due(10_000, 0.5) == []
    assert silence.note_data(A, 800) is False
    assert silence.detect(10_000) == []


def test_silent_subscription_is_retried_at_once_then_hourly(silence: SilenceDetector) -> None:
    silence.ignore([A])
    silence.detect(700)
    retried_at = [second for second in range(700, 20_000) if silence.due(second, chance=1.0)]
    assert [later - earlier for earlier, later in pairwise(retried_at)] == [600, 1200, 2400, *[3600] * 4]


def test_limit_above_an_hour_is_the_shortest_retry() -> None:
    silence = SilenceDetector(7200)
    silence.expect([A], 0)
    silence.detect(7200)
    assert silence.due(7200, chance=1.0) == [A]
    assert silence.due(14_399, chance=1.0) == []
    assert silence.due(14_400, chance=1.0) == [A]
