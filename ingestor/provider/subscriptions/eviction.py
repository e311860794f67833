"""Detect a provider that closes a connection as soon as its replacement opens. Free of I/O: time is an argument."""

from __future__ import annotations

TOLERANCE_SECONDS = 1.0  # the close may arrive before we know that the replacement is open
MIN_IN_A_ROW = 2  # one may be a coincidence
REPORT_INTERVAL_SECONDS = 3600.0


class EvictionDetector:
    """Judges the replacements of one group's connections. All times are seconds on one clock."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._reported_at = float("-inf")

    def should_report(self, *, opened_at: float, old_ended_at: float | None, now: float) -> bool:
        """Note a replacement that opened at ``opened_at``, and when the old connection ended, if it has.

        Return True, at most once an hour, if replacements closed the old connection several times in a row.
        """
        evicted = old_ended_at is not None and old_ended_at >= opened_at - TOLERANCE_SECONDS
        self._in_a_row = self._in_a_row + 1 if evicted else 0
        if self._in_a_row < MIN_IN_A_ROW or now < self._reported_at + REPORT_INTERVAL_SECONDS:
            return False
        self._reported_at = now
        return True
