"""Report an outage, not each attempt: its start, each different error, a reminder every hour, and its end."""

from __future__ import annotations

import re

REMIND_SECONDS = 3600.0
MAX_ERRORS = 5  # different errors that are reported between two reminders

_NUMBER = re.compile(r"\d+")  # a port or a duration makes no other error


class Outage:
    """Counts the failed attempts to reach one thing. ``now`` is in seconds, on a clock that never steps back."""

    def __init__(self) -> None:
        self.attempts = 0  # that failed; 0: there is no outage
        self._began_at = 0.0
        self._remind_at = 0.0
        self._reported: set[str] = set()  # errors, since the last reminder

    def note_failure(self, error: str, now: float) -> bool:
        """Count a failed attempt. Return whether it is to be reported."""
        if not self.attempts:
            self._began_at = self._remind_at = now
        self.attempts += 1
        if now >= self._remind_at:
            self._remind_at = now + REMIND_SECONDS
            self._reported.clear()
        text = _NUMBER.sub("#", error)
        if text in self._reported or len(self._reported) >= MAX_ERRORS:
            return False
        self._reported.add(text)
        return True

    def end(self, now: float) -> dict[str, float]:
        """End the outage. Return how many attempts failed and for how many seconds; empty if there was no outage."""
        attempts, self.attempts = self.attempts, 0
        return {"failed_attempts": attempts, "outage_seconds": round(now - self._began_at, 1)} if attempts else {}
