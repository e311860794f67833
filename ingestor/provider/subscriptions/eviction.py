"""Does the provider throw out an older connection when its successor comes? Pure: time is an argument."""

from __future__ import annotations

AROUND_SECONDS = 1.0  # the older one may learn of it before the newer one learns that it is connected
IN_A_ROW = 2  # once may be chance
AGAIN_SECONDS = 3600.0


class EvictionDetector:
    """Of one group. Times are seconds on one clock."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._told_at = float("-inf")

    def succeeded(self, *, opened_at: float, ended_at: float | None, now: float) -> bool:
        """A connection that opened then is to take over from one that ended then, if it has ended.

        True if that is worth telling: twice in a row the older one did not outlive the newer one's coming.
        """
        evicted = ended_at is not None and ended_at >= opened_at - AROUND_SECONDS
        self._in_a_row = self._in_a_row + 1 if evicted else 0
        if self._in_a_row < IN_A_ROW or now < self._told_at + AGAIN_SECONDS:
            return False
        self._told_at = now
        return True
