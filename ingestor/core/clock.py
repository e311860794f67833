"""CLOCK_BOOTTIME for durations, wall clock for timestamps. Comparing both reveals suspends and clock steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MIN_STALL_SECONDS = 5.0  # between two readings that are meant to be one second apart
MIN_STEP_SECONDS = 1.0  # slewing moves a clock by half a millisecond per second, so this is a step


def boottime() -> float:
    """Return the seconds since boot, including suspend. For lifetimes and deadlines: never steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return what identifies this boot of the machine: ``boottime`` is comparable within one. Empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def wall_us() -> int:
    """Return the microseconds since the epoch (UTC). For timestamps: may step in either direction."""
    return time.time_ns() // 1000


class ClockReading(NamedTuple):
    """Both clocks at one moment."""

    wall_us: int
    boottime: float

    def wall_us_at(self, boottime: float) -> int:
        """Return what the wall clock, as it is set now, would have shown at another moment (seconds since boot)."""
        return self.wall_us - round((self.boottime - boottime) * 1_000_000)


def read_clocks() -> ClockReading:
    """Read both clocks."""
    return ClockReading(wall_us(), boottime())


class ProvenTime:
    """A time that has certainly come, whatever our clock says: the newest ts of the provider, and the time since.

    For what must not happen too early, such as deleting: a clock may be years ahead, and the database's with it.
    """

    def __init__(self) -> None:
        self._latest: ClockReading | None = None

    def note(self, at_us: int) -> None:
        """Take note of a row of the provider about this time (µs since the epoch). Either may be wrong."""
        now, at_us = boottime(), min(at_us, wall_us())
        if self._latest is None or at_us > _carried(self._latest, now):
            self._latest = ClockReading(at_us, now)

    def now_us(self) -> int | None:
        """Return the proven time or ours, whichever is earlier. None without proof."""
        return None if self._latest is None else min(_carried(self._latest, boottime()), wall_us())


def _carried(reading: ClockReading, now: float) -> int:
    return reading.wall_us + int((now - reading.boottime) * 1_000_000)


@dataclass(frozen=True, slots=True)
class Interruption:
    """What happened between two readings of the clocks. Seconds; 0.0 for what did not happen."""

    stall_seconds: float  # nothing ran: SIGSTOP, suspend, an overloaded machine
    step_seconds: float  # of the wall clock, forward or (negative) back

    @property
    def reason(self) -> str:
        """The interruption in words."""
        parts = []
        if self.stall_seconds:
            parts.append(f"the process stood still for {self.stall_seconds:.0f} s")
        if self.step_seconds:
            direction = "forward" if self.step_seconds > 0 else "back"
            parts.append(f"the clock was set {direction} by {abs(self.step_seconds):.0f} s")
        return ", and ".join(parts)


def detect_interruption(before: ClockReading, now: ClockReading) -> Interruption | None:
    """Compare with the previous reading, about a second ago. Return None if neither a stall nor a step happened."""
    elapsed = now.boottime - before.boottime
    step = (now.wall_us - before.wall_us) / 1_000_000 - elapsed
    stall_seconds = elapsed if elapsed > MIN_STALL_SECONDS else 0.0
    step_seconds = step if abs(step) >= MIN_STEP_SECONDS else 0.0
    return Interruption(stall_seconds, step_seconds) if stall_seconds or step_seconds else None


class Clocks:
    """Reads both clocks, and reports what happened since the reading before.

    A time that is not now must be derived from a reading of these, so that it is never taken from two settings of the
    wall clock: a step is reported before the first reading after it is returned.
    """

    def __init__(self, came_at: Callable[[], float] = boottime, max_late_seconds: float = 0.0) -> None:
        """``came_at`` returns since when what is read now may have waited; ``max_late_seconds`` is at most that ago."""
        self.came_at = came_at
        self.max_late_us = round(max_late_seconds * 1_000_000)
        self.on_interruption: list[Callable[[Interruption, ClockReading, ClockReading], None]] = []
        self._last_reading = read_clocks()

    def read(self) -> ClockReading:
        """Read the clocks. Calls ``on_interruption`` with what happened, the reading before it and the one after it."""
        before, now = self._last_reading, read_clocks()
        self._last_reading = now
        if found := detect_interruption(before, now):
            for report in self.on_interruption:
                report(found, before, now)
        return now
