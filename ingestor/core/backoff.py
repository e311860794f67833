"""How long to wait before the next try. Pure but for ``chance``: luck comes in as an argument."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_DICE = random.SystemRandom()  # two daemons started by one script must not throw the same numbers
_STEPS = 40  # doublings that are counted; beyond, every cap has long been reached and 2**n would overflow


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubling waits up to a cap. ``failures`` counts from 1, ``chance`` is a random number in [0, 1)."""

    first_seconds: float
    cap_seconds: float

    def ceiling(self, failures: int) -> float:
        """The longest wait in seconds after so many failures in a row."""
        return min(self.cap_seconds, self.first_seconds * 2.0 ** min(max(failures, 1) - 1, _STEPS))

    def full_jitter(self, failures: int, chance: float) -> float:
        """Anything from nothing to the ceiling: a crowd of clients that lost one server spreads evenly."""
        return self.ceiling(failures) * chance

    def equal_jitter(self, failures: int, chance: float) -> float:
        """From half the ceiling to all of it: for one who must never hurry."""
        return self.ceiling(failures) * (0.5 + chance / 2)


@dataclass(slots=True)
class RetryTimer:
    """When the next of several attempts is due, by a clock that the caller knows."""

    attempts: int = 0
    due_at: float = 0.0

    def start(self) -> None:
        """A try is under way: none is due until it is ``put_off``."""
        self.due_at = math.inf

    def schedule_retry(self, backoff: Backoff, now: float, chance: float) -> None:
        """One more did not help."""
        self.attempts += 1
        self.due_at = now + backoff.equal_jitter(self.attempts, chance)


def chance() -> float:
    """A random number in [0, 1)."""
    return _DICE.random()
