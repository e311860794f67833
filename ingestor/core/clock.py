"""The two clocks: one for how long, one for when. Never exchanged; compared, they tell what we slept through."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

STALL_SECONDS = 5.0  # between two looks a second apart
STEP_SECONDS = 1.0  # slewing moves a clock by half a millisecond a second: this is no slew


def boottime() -> float:
    """Seconds since boot, suspend included: what lifetimes and deadlines run on. Never steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_us() -> int:
    """Microseconds since the epoch (UTC): what stamps are made of. May step either way."""
    return time.time_ns() // 1000


class ClockReading(NamedTuple):
    """A look at both clocks."""

    wall_us: int
    boottime: float


def read_clocks() -> ClockReading:
    """Look at both clocks."""
    return ClockReading(wall_us(), boottime())


@dataclass(frozen=True, slots=True)
class Interruption:
    """What happened between two looks at the clocks. Seconds; 0.0 for what did not happen."""

    stall_seconds: float  # nothing ran: SIGSTOP, suspend, a machine that had no time for us
    step_seconds: float  # the wall clock, forwards or (below zero) back

    @property
    def reason(self) -> str:
        """For people."""
        stood = [f"the process stood still for {self.stall_seconds:.0f} s"] if self.stall_seconds else []
        way = "forward" if self.step_seconds > 0 else "back"
        was_set = [f"the clock was set {way} by {abs(self.step_seconds):.0f} s"] if self.step_seconds else []
        return ", and ".join(stood + was_set)


def detect_interruption(before: ClockReading, now: ClockReading) -> Interruption | None:
    """What happened since the look before, which was meant to be a second ago; None on an ordinary day."""
    gone = now.boottime - before.boottime
    step = (now.wall_us - before.wall_us) / 1_000_000 - gone
    stood_still = gone if gone > STALL_SECONDS else 0.0
    set_by = step if abs(step) >= STEP_SECONDS else 0.0
    return Interruption(stood_still, set_by) if stood_still or set_by else None
