from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingestor.core.times import split_into_cells

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("from_seconds", "to_seconds", "expected"),
    [
        pytest.param(0, 10, [(0, 10)], id="one whole cell"),
        pytest.param(12, 15, [(1, 3)], id="part of a cell"),
        pytest.param(5, 25, [(0, 5), (1, 10), (2, 5)], id="several cells"),
        pytest.param(-100, 100, [(0, 10), (1, 10), (2, 10)], id="beyond both ends"),
        pytest.param(10, 10, [], id="empty"),
        pytest.param(-20, -10, [], id="before"),
        pytest.param(30, 40, [], id="after"),
    ],
)
def test_split_into_cells(from_seconds: int, to_seconds: int, expected: list[tuple[int, int]]) -> None:
    from_at, to_at = (START + timedelta(seconds=seconds) for seconds in (from_seconds, to_seconds))
    found = split_into_cells(from_at, to_at, start=START, cell_us=10_000_000, cells=3)
    assert [(cell, us / 1_000_000) for cell, us in found] == expected
