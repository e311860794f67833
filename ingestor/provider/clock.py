"""The two clocks: one for how long, one for when. They are never exchanged."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since boot, suspend included: what lifetimes and deadlines run on. Never steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_us() -> int:
    """Microseconds since the epoch (UTC): what stamps are made of. May step either way."""
    return time.time_ns() // 1000
