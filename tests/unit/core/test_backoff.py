from __future__ import annotations

import pytest

from ingestor.core.backoff import Backoff, chance

BACKOFF = Backoff(first_seconds=1.0, cap_seconds=60.0)


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (1000, 60.0), (10**9, 60.0)],
)
def test_ceiling_doubles_up_to_the_cap(failures: int, seconds: float) -> None:
    assert BACKOFF.ceiling(failures) == seconds


@pytest.mark.parametrize(("fraction", "seconds"), [(0.0, 0.0), (0.5, 2.0), (1.0, 4.0)])
def test_full_jitter_ranges_from_zero_to_ceiling(fraction: float, seconds: float) -> None:
    assert BACKOFF.full_jitter(3, fraction) == seconds


@pytest.mark.parametrize(("fraction", "seconds"), [(0.0, 2.0), (0.5, 3.0), (1.0, 4.0)])
def test_equal_jitter_ranges_from_half_to_ceiling(fraction: float, seconds: float) -> None:
    assert BACKOFF.equal_jitter(3, fraction) == seconds


def test_chance_is_a_varying_fraction() -> None:
    numbers = [chance() for _ in range(20)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) > 1
