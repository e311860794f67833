"""Set the clocks of this process, as an administrator or a suspend does: for daemons in the test's own event loop."""

from __future__ import annotations

import time

import pytest


class SteppedClock:
    """Shifts the wall clock, and with a suspend both clocks, by what ``step`` and ``suspend`` are called with.

    Timers of the event loop and ``datetime.now`` are not shifted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wall_ns = 0
        self._boot_seconds = 0.0
        time_ns, clock_gettime = time.time_ns, time.clock_gettime
        monkeypatch.setattr(time, "time_ns", lambda: time_ns() + self._wall_ns)
        monkeypatch.setattr(
            time,
            "clock_gettime",
            lambda clock: clock_gettime(clock) + (self._boot_seconds if clock == time.CLOCK_BOOTTIME else 0.0),
        )

    def step(self, seconds: float) -> None:
        """Set the wall clock forward or (negative) back."""
        self._wall_ns += round(seconds * 1e9)

    def suspend(self, seconds: float) -> None:
        """Let time pass in which nothing ran."""
        self.step(seconds)
        self._boot_seconds += seconds
