from __future__ import annotations

import pytest

from ingestor.provider.subscriptions.eviction import EvictionDetector


@pytest.mark.parametrize(
    ("ended", "reported"),
    [
        pytest.param([0.1, 0.1], True, id="twice, after the new one opened"),
        pytest.param([-0.9, 5.0], True, id="shortly before it opened, and while it was answered"),
        pytest.param([0.1], False, id="once"),
        pytest.param([0.1, None, 0.1], False, id="not in a row"),
        pytest.param([0.1, -1.1, 0.1], False, id="long before the new one opened, in between"),
        pytest.param([None, None, None], False, id="never"),
    ],
)
def test_two_evictions_in_a_row_are_reported(ended: list[float | None], reported: bool) -> None:
    """``ended``: when each old connection ended, relative to the opening of the new one."""
    evictions = EvictionDetector()
    reports = [
        evictions.should_report(opened_at=at, old_ended_at=None if after is None else at + after, now=at)
        for at, after in zip(range(0, 1000, 100), ended, strict=False)
    ]
    assert reports == [*[False] * (len(ended) - 1), reported]


def test_evictions_are_reported_once_an_hour() -> None:
    evictions = EvictionDetector()
    reported = [at for at in range(0, 9000, 100) if evictions.should_report(opened_at=at, old_ended_at=at, now=at)]
    assert reported == [100, 3700, 7300]
