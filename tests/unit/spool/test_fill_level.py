from __future__ import annotations

import pytest

from ingestor.spool.fill_level import Fill, fill


@pytest.mark.parametrize(
    ("before", "used_percent", "disk_full", "after"),
    [
        pytest.param(Fill.FINE, 69.9, False, Fill.FINE, id="room enough"),
        pytest.param(Fill.FINE, 70.0, False, Fill.FILLING, id="an alarm at 70"),
        pytest.param(Fill.FILLING, 90.0, False, Fill.CRITICAL, id="and at 90"),
        pytest.param(Fill.CRITICAL, 100.0, False, Fill.FULL, id="full"),
        pytest.param(Fill.FULL, 81.0, False, Fill.FULL, id="still full, until there is real room"),
        pytest.param(Fill.FULL, 80.0, False, Fill.FILLING, id="resumes at 80"),
        pytest.param(Fill.FILLING, 60.0, False, Fill.FINE, id="well again"),
        pytest.param(Fill.FINE, 0.0, True, Fill.FULL, id="the disk is full, whatever is taken"),
        pytest.param(Fill.FULL, 0.0, False, Fill.FINE, id="and has room again"),
    ],
)
def test_how_full_the_spool_is(before: Fill, used_percent: float, disk_full: bool, after: Fill) -> None:
    assert fill(before, used_percent=used_percent, disk_full=disk_full) is after
