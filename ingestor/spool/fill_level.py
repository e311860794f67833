"""How full the spool is, and what follows from it. Pure; the thresholds are crossed upwards and downwards apart."""

from __future__ import annotations

from enum import IntEnum


class FillLevel(IntEnum):
    """How much of ``spool.max_bytes`` is taken. From FULL on, connections are closed on purpose."""

    FINE = 0
    FILLING = 70  # percent
    CRITICAL = 90
    FULL = 100


RESUME_PERCENT = 80  # FULL ends here, and not a byte before: each reconnect costs a window of data


def next_fill_level(before: FillLevel, *, used_percent: float, disk_full: bool) -> FillLevel:
    """The fill that follows ``before``. A full disk counts as FULL, however little is taken."""
    if disk_full or used_percent >= FillLevel.FULL or (before is FillLevel.FULL and used_percent > RESUME_PERCENT):
        return FillLevel.FULL
    return max(
        (level for level in FillLevel if level is not FillLevel.FULL and used_percent >= level), default=FillLevel.FINE
    )
