"""How long to wait before the next attempt. The random number is an argument, so that the functions are pure."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_RANDOM = random.SystemRandom()  # two daemons started by one script must not draw the same numbers
_MAX_DOUBLINGS = 40  # every cap has been reached long before, and 2**n would overflow


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays up to a cap. ``failures`` counts from 1, ``chance`` is a random number in [0, 1)."""

    first_seconds: float
    cap_seconds: float

    def ceiling(self, failures: int) -> float:
        """Return the longest delay in seconds after this many failures in a row."""
        return min(self.cap_seconds, self.first_seconds * 2.0 ** min(max(failures, 1) - 1, _MAX_DOUBLINGS))

    def full_jitter(self, failures: int, chance: float) -> float:
        """Return a random delay up to the ceiling: many clients that lost one server spread evenly ("full jitter")."""
        return self.ceiling(failures) * chance

    def equal_jitter(self, failures: int, chance: float) -> float:
        """Return a random delay between 50 % and 100 % of the ceiling ("equal jitter")."""
        return self.ceiling(failures) * (0.5 + chance / 2)


@dataclass(slots=True)
class RetryTimer:
    """When the next attempt is due, on the caller's clock."""

    attempts: int = 0
    due_at: float = 0.0

    def start(self) -> None:
        """Note that an attempt is in progress: none is due until ``schedule_retry``."""
        self.due_at = math.inf

    def schedule_retry(self, backoff: Backoff, now: float, chance: float) -> None:
        """Note that the attempt failed, and set when the next one is due."""
        self.attempts += 1
        self.due_at = now + backoff.equal_jitter(self.attempts, chance)


def chance() -> float:
    """Return a random number in [0, 1)."""
    return _RANDOM.random()
