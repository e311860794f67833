from __future__ import annotations

import pytest

from ingestor.core import clock
from ingestor.core.clock import ClockReading, ProvenTime, detect_interruption

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


def test_time_is_proven_by_rows_and_carried_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    now = ClockReading(2_000_000_000_000_000, 100.0)
    monkeypatch.setattr(clock, "boottime", lambda: now.boottime)
    monkeypatch.setattr(clock, "wall_us", lambda: now.wall_us)
    proven = ProvenTime()
    assert proven.now_us() is None
    proven.note(1_000)
    assert proven.now_us() == 1_000, "our clock is far ahead"
    now = ClockReading(9_000_000_000_000_000, 110.0)
    assert proven.now_us() == 10_001_000, "ten seconds later, whatever our clock says"
    proven.note(5_000_000)
    assert proven.now_us() == 10_001_000, "an older row proves nothing new"
    proven.note(10**18)
    assert proven.now_us() == 9_000_000_000_000_000, "a row about the future proves no more than our clock"
    now = ClockReading(9_900_000_000_000_000, 111.0)
    assert proven.now_us() == 9_000_000_001_000_000, "nor does it once our clock has jumped ahead"
    now = ClockReading(500, 112.0)
    assert proven.now_us() == 500, "our clock was set back"
