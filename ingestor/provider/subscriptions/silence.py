"""Which subscriptions have had no data for too long, and when each is asked for again. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Iterable

from ingestor.core.backoff import Backoff, RetryTimer
from ingestor.core.entries import SubscriptionKey

CAP_SECONDS = 3600.0


class SilenceDetector:
    """Of one group's subscriptions. Times are seconds on one clock, ``chance`` is a random number in [0, 1)."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._again = Backoff(limit_seconds, max(limit_seconds, CAP_SECONDS))
        self._since: dict[SubscriptionKey, float] = {}  # of all that are listened for
        self._turns: dict[SubscriptionKey, RetryTimer] = {}  # of those that are silent

    def __contains__(self, key: SubscriptionKey) -> bool:
        """Whether it is silent."""
        return key in self._turns

    def listen(self, keys: Iterable[SubscriptionKey], at: float) -> None:
        """Data may be expected from now on."""
        for key in keys:
            self._since[key] = at

    def ignore(self, keys: Iterable[SubscriptionKey]) -> None:
        """None can be expected any more."""
        for key in list(keys):
            self._since.pop(key, None)
            self._turns.pop(key, None)

    def heard(self, key: SubscriptionKey, at: float) -> bool:
        """Data came. Whether that ends a silence."""
        if key in self._since:
            self._since[key] = at
        return self._turns.pop(key, None) is not None

    def found(self, until: float) -> list[SubscriptionKey]:
        """Those that have become silent. Their turn to be asked for again is at once."""
        limit = self._limit
        found = [key for key, at in self._since.items() if until - at >= limit and key not in self._turns]
        self._turns |= {key: RetryTimer() for key in found}
        return found

    def due(self, now: float, chance: float) -> list[SubscriptionKey]:
        """Those whose turn it is: ever more rarely, up to once an hour."""
        due = [key for key, turn in self._turns.items() if turn.due_at <= now]
        for key in due:
            self._turns[key].schedule_retry(self._again, now, chance)
        return due
