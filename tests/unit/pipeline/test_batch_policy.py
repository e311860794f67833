from __future__ import annotations

import pytest

from ingestor.pipeline.batch_policy import BatchPolicy

POLICY = BatchPolicy(max_rows=100, max_wait_seconds=0.1, max_bytes=1000)


@pytest.mark.parametrize(
    ("rows", "size_bytes", "full"),
    [
        pytest.param(99, 999, False, id="room for more"),
        pytest.param(100, 0, True, id="enough rows"),
        pytest.param(1, 1000, True, id="few rows, but large ones"),
    ],
)
def test_batch_is_full_by_rows_or_by_bytes(rows: int, size_bytes: int, full: bool) -> None:
    assert POLICY.full(rows=rows, size_bytes=size_bytes) is full


@pytest.mark.parametrize(
    ("rows", "age_seconds", "expected"),
    [(0, 5.0, 1.0), (1, 0.04, pytest.approx(0.06)), (1, 7.0, 0.0)],
)
def test_wait_is_limited_once_the_batch_has_rows(rows: int, age_seconds: float, expected: float) -> None:
    assert POLICY.wait_seconds(rows=rows, age_seconds=age_seconds, idle_seconds=1.0) == expected


@pytest.mark.parametrize(
    ("rows", "entries", "expected"),
    [
        pytest.param(0, 0, 1, id="nothing yet: the first entry counts"),
        pytest.param(20, 20, 80, id="a row each"),
        pytest.param(60, 2, 1, id="thirty rows each"),
        pytest.param(40, 400, 600, id="hardly any row is new"),
    ],
)
def test_entries_to_full_follow_the_rows_per_entry(rows: int, entries: int, expected: int) -> None:
    assert POLICY.entries_to_full(rows=rows, entries=entries) == expected


@pytest.mark.parametrize(
    ("age_seconds", "expected"), [(0.0, pytest.approx(0.08)), (0.07, pytest.approx(0.01)), (0.09, 0.0)]
)
def test_time_already_waited_counts(age_seconds: float, expected: float) -> None:
    policy = BatchPolicy(max_rows=100, max_wait_seconds=0.1, already_waited_seconds=0.02)
    assert policy.wait_seconds(rows=1, age_seconds=age_seconds, idle_seconds=1.0) == expected
