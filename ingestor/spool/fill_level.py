"""How full the spool is, and what follows from it. Pure; the thresholds are crossed upwards and downwards apart."""

from __future__ import annotations

from enum import IntEnum


class Fill(IntEnum):
    """How much of ``spool.max_bytes`` is taken. From FULL on, connections are closed on purpose."""

    FINE = 0
    FILLING = 70  # percent
    CRITICAL = 90
    FULL = 100


RESUME_PERCENT = 80  # FULL ends here, and not a byte before: each reconnect costs a window of data


def fill(before: Fill, *, used_percent: float, disk_full: bool) -> Fill:
    """The fill that follows ``before``. A full disk counts as FULL, however little is taken."""
    if disk_full or used_percent >= Fill.FULL or (before is Fill.FULL and used_percent > RESUME_PERCENT):
        return Fill.FULL
    return max((level for level in Fill if level is not Fill.FULL and used_percent >= level), default=Fill.FINE)
