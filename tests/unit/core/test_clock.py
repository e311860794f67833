from __future__ import annotations

import pytest

from ingestor.core.clock import ClockReading, detect_interruption

BEFORE = ClockReading(1_000_000_000_000_000, 5000.0)


@pytest.mark.parametrize(
    ("wall_seconds", "boot_seconds", "reason"),
    [
        pytest.param(1.0, 1.0, None, id="no interruption"),
        pytest.param(4.9, 4.9, None, id="short delay"),
        pytest.param(1.9, 1.0, None, id="slewed clock"),
        pytest.param(5.1, 5.1, "the process stood still for 5 s", id="stall just over the limit"),
        pytest.param(3600.0, 3600.0, "the process stood still for 3600 s", id="stall of an hour"),
        pytest.param(3601.0, 1.0, "the clock was set forward by 3600 s", id="forward"),
        pytest.param(-3599.0, 1.0, "the clock was set back by 3600 s", id="back"),
        pytest.param(
            3720.0,
            120.0,
            "the process stood still for 120 s, and the clock was set forward by 3600 s",
            id="stall and step forward",
        ),
        pytest.param(
            -3480.0,
            120.0,
            "the process stood still for 120 s, and the clock was set back by 3600 s",
            id="both",
        ),
    ],
)
def test_detect_interruption_names_stall_and_step(wall_seconds: float, boot_seconds: float, reason: str | None) -> None:
    now = ClockReading(BEFORE.wall_us + round(wall_seconds * 1_000_000), BEFORE.boottime + boot_seconds)
    interruption = detect_interruption(BEFORE, now)
    assert (interruption and interruption.reason) == reason
