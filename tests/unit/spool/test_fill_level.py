from __future__ import annotations

import pytest

from ingestor.spool.fill_level import FillLevel, next_fill_level


@pytest.mark.parametrize(
    ("before", "used_percent", "disk_full", "after"),
    [
        pytest.param(FillLevel.FINE, 69.9, False, FillLevel.FINE, id="room enough"),
        pytest.param(FillLevel.FINE, 70.0, False, FillLevel.FILLING, id="an alarm at 70"),
        pytest.param(FillLevel.FILLING, 90.0, False, FillLevel.CRITICAL, id="and at 90"),
        pytest.param(FillLevel.CRITICAL, 100.0, False, FillLevel.FULL, id="full"),
        pytest.param(FillLevel.FULL, 81.0, False, FillLevel.FULL, id="still full, until there is real room"),
        pytest.param(FillLevel.FULL, 80.0, False, FillLevel.FILLING, id="resumes at 80"),
        pytest.param(FillLevel.FILLING, 60.0, False, FillLevel.FINE, id="well again"),
        pytest.param(FillLevel.FINE, 0.0, True, FillLevel.FULL, id="the disk is full, whatever is taken"),
        pytest.param(FillLevel.FULL, 0.0, False, FillLevel.FINE, id="and has room again"),
    ],
)
def test_fill_level_follows_usage_with_hysteresis(
    before: FillLevel, used_percent: float, disk_full: bool, after: FillLevel
) -> None:
    assert next_fill_level(before, used_percent=used_percent, disk_full=disk_full) is after
