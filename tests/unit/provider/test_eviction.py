from __future__ import annotations

import pytest

from ingestor.provider.subscriptions.eviction import EvictionDetector


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        pytest.param([0.1, 0.1], True, id="twice, when the newer one had opened"),
        pytest.param([-0.9, 5.0], True, id="shortly before, and while it was answered"),
        pytest.param([0.1], False, id="once"),
        pytest.param([0.1, None, 0.1], False, id="not in a row"),
        pytest.param([0.1, -1.1, 0.1], False, id="in between one that had ended before"),
        pytest.param([None, None, None], False, id="never"),
    ],
)
def test_a_provider_that_ends_the_older_connection_twice_in_a_row_is_told_of(
    ended: list[float | None], told: bool
) -> None:
    evictions = EvictionDetector()
    found = [
        evictions.succeeded(opened_at=at, ended_at=None if after is None else at + after, now=at)
        for at, after in zip(range(0, 1000, 100), ended, strict=False)
    ]
    assert found == [*[False] * (len(ended) - 1), told]


def test_it_is_told_once_an_hour() -> None:
    evictions = EvictionDetector()
    told = [at for at in range(0, 9000, 100) if evictions.succeeded(opened_at=at, ended_at=at, now=at)]
    assert told == [100, 3700, 7300]
