from __future__ import annotations

from collections.abc import Sequence

import pytest

from ingestor.errors import BatchRejected
from ingestor.store.write.bisection import bisect_rejected


@pytest.mark.parametrize(
    ("bad", "max_attempts"),
    [
        pytest.param(set(), 1, id="nothing is rejected"),
        pytest.param({0}, 21, id="the first"),
        pytest.param({999}, 21, id="the last"),
        pytest.param({499, 500}, 39, id="two neighbors"),
        pytest.param(set(range(1000)), 1999, id="everything"),
    ],
)
def test_bisection_rejects_exactly_the_bad_items(bad: set[int], max_attempts: int) -> None:
    accepted: list[int] = []
    rejected: list[int] = []
    sizes: list[int] = []

    def attempt(items: Sequence[int]) -> None:
        sizes.append(len(items))
        if bad.intersection(items):
            raise BatchRejected("no")
        accepted.extend(items)

    bisect_rejected(range(1000), attempt, lambda item, _error: rejected.append(item))
    assert accepted == [number for number in range(1000) if number not in bad]  # in order
    assert rejected == sorted(bad)
    assert len(sizes) <= max_attempts


def test_bisection_passes_other_errors_on() -> None:
    def attempt(items: Sequence[int]) -> None:
        raise (BatchRejected if len(items) > 1 else KeyError)("no")

    with pytest.raises(KeyError):
        bisect_rejected([1, 2], attempt, lambda _item, _error: None)
