from __future__ import annotations

import pytest

from ingestor.core.backoff import Backoff, chance

BACKOFF = Backoff(first_seconds=1.0, cap_seconds=60.0)


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (1000, 60.0), (10**9, 60.0)],
)
def test_waits_double_up_to_the_cap(failures: int, seconds: float) -> None:
    assert BACKOFF.ceiling(failures) == seconds


@pytest.mark.parametrize(("luck", "seconds"), [(0.0, 0.0), (0.5, 2.0), (1.0, 4.0)])
def test_full_jitter_spreads_from_nothing_to_the_ceiling(luck: float, seconds: float) -> None:
    assert BACKOFF.full_jitter(3, luck) == seconds


@pytest.mark.parametrize(("luck", "seconds"), [(0.0, 2.0), (0.5, 3.0), (1.0, 4.0)])
def test_half_jitter_never_waits_less_than_half_the_ceiling(luck: float, seconds: float) -> None:
    assert BACKOFF.equal_jitter(3, luck) == seconds


def test_chance_is_a_fraction_and_not_always_the_same() -> None:
    throws = [chance() for _ in range(20)]
    assert all(0 <= throw < 1 for throw in throws)
    assert len(set(throws)) > 1
