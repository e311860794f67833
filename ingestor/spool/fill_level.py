"""How full the spool is. Pure. FULL ends at a lower level than it begins, so that it does not flap."""

from __future__ import annotations

from enum import IntEnum


class FillLevel(IntEnum):
    """How much of ``spool.max_bytes`` is used. At FULL, connections are closed on purpose."""

    FINE = 0
    FILLING = 70  # percent
    CRITICAL = 90
    FULL = 100


RESUME_PERCENT = 80  # FULL ends here: each reconnect costs a window of data


def next_fill_level(before: FillLevel, *, used_percent: float, disk_full: bool) -> FillLevel:
    """Return the level that follows ``before``. A full disk counts as FULL, however little the spool holds."""
    if disk_full or used_percent >= FillLevel.FULL or (before is FillLevel.FULL and used_percent > RESUME_PERCENT):
        return FillLevel.FULL
    if used_percent >= FillLevel.FILLING:
        return FillLevel.CRITICAL if used_percent >= FillLevel.CRITICAL else FillLevel.FILLING
    return FillLevel.FINE
