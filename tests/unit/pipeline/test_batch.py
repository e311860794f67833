from __future__ import annotations

import pytest

from ingestor.pipeline.batch import BatchPolicy

POLICY = BatchPolicy(max_rows=100, max_wait_seconds=0.1)


@pytest.mark.parametrize(
    ("rows", "age_seconds", "due"),
    [
        pytest.param(0, 9.0, False, id="nothing to write"),
        pytest.param(1, 0.05, False, id="young and small"),
        pytest.param(1, 0.1, True, id="old enough"),
        pytest.param(100, 0.0, True, id="full"),
    ],
)
def test_a_batch_is_due_when_it_is_full_or_its_oldest_has_waited(rows: int, age_seconds: float, due: bool) -> None:
    assert POLICY.due(rows=rows, age_seconds=age_seconds) is due


@pytest.mark.parametrize(
    ("rows", "age_seconds", "patience"),
    [(0, 5.0, 1.0), (1, 0.04, pytest.approx(0.06)), (1, 7.0, 0.0)],
)
def test_an_entry_waits_for_company_no_longer_than_allowed(rows: int, age_seconds: float, patience: float) -> None:
    assert POLICY.patience_seconds(rows=rows, age_seconds=age_seconds, idle_seconds=1.0) == patience
