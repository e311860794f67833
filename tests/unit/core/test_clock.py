from __future__ import annotations

import pytest

from ingestor.core.clock import ClockReading, detect_interruption

BEFORE = ClockReading(1_000_000_000_000_000, 5000.0)


@pytest.mark.parametrize(
    ("wall_seconds", "boot_seconds", "reason"),
    [
        pytest.param(1.0, 1.0, None, id="an ordinary second"),
        pytest.param(4.9, 4.9, None, id="a busy machine"),
        pytest.param(1.9, 1.0, None, id="a clock that is slewed"),
        pytest.param(5.1, 5.1, "the process stood still for 5 s", id="just too long"),
        pytest.param(3600.0, 3600.0, "the process stood still for 3600 s", id="SIGSTOP or suspend for an hour"),
        pytest.param(3601.0, 1.0, "the clock was set forward by 3600 s", id="forward"),
        pytest.param(-3599.0, 1.0, "the clock was set back by 3600 s", id="back"),
        pytest.param(
            3720.0,
            120.0,
            "the process stood still for 120 s, and the clock was set forward by 3600 s",
            id="suspended, and set on waking",
        ),
        pytest.param(
            -3480.0, 120.0, "the process stood still for 120 s, and the clock was set back by 3600 s", id="both"
        ),
    ],
)
def test_what_happened_between_two_looks_at_the_clocks(
    wall_seconds: float, boot_seconds: float, reason: str | None
) -> None:
    now = ClockReading(BEFORE.wall_us + round(wall_seconds * 1_000_000), BEFORE.boottime + boot_seconds)
    found = detect_interruption(BEFORE, now)
    assert (found and found.reason) == reason
