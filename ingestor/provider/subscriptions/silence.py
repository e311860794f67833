"""Detect subscriptions without data, and schedule when each is resubscribed. Free of I/O: time is an argument."""

from __future__ import annotations

from collections.abc import Iterable

from ingestor.core.backoff import Backoff, RetryTimer
from ingestor.core.entries import SubscriptionKey

MAX_RETRY_SECONDS = 3600.0


class SilenceDetector:
    """Detects silence among one group's subscriptions. Times are boottime."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._backoff = Backoff(limit_seconds, max(limit_seconds, MAX_RETRY_SECONDS))
        self._last_data_boottime: dict[SubscriptionKey, float] = {}  # or since when data is expected
        self._retries: dict[SubscriptionKey, RetryTimer] = {}  # of the silent subscriptions

    def __contains__(self, key: SubscriptionKey) -> bool:
        """Return whether this subscription is silent."""
        return key in self._retries

    def expect(self, keys: Iterable[SubscriptionKey], now: float) -> None:
        """Expect data from now on."""
        self._last_data_boottime.update(dict.fromkeys(keys, now))

    def ignore(self, keys: Iterable[SubscriptionKey]) -> None:
        """Expect no more data: these subscriptions are not silent."""
        for key in keys:
            self._last_data_boottime.pop(key, None)
            self._retries.pop(key, None)

    def note_data(self, key: SubscriptionKey, now: float) -> bool:
        """Note that data was received. Return whether that ends a silence."""
        if key in self._last_data_boottime:
            self._last_data_boottime[key] = now
        return self._retries.pop(key, None) is not None

    def last_data_boottime(self, key: SubscriptionKey) -> float:
        """Return when data was last noted, which is never before it was received, or since when it is expected."""
        return self._last_data_boottime[key]

    def detect(self, until: float) -> list[SubscriptionKey]:
        """Return the subscriptions that have become silent by ``until``. Each is due to be resubscribed at once."""
        latest = until - self._limit_seconds
        silent = [key for key, at in self._last_data_boottime.items() if at <= latest and key not in self._retries]
        self._retries |= {key: RetryTimer() for key in silent}
        return silent

    def due(self, now: float, chance: float) -> list[SubscriptionKey]:
        """Return the silent subscriptions to resubscribe now, and schedule the next time, backing off to once an hour.

        ``chance`` is a random number in [0, 1).
        """
        due = [key for key, retry in self._retries.items() if retry.due_at <= now]
        for key in due:
            self._retries[key].schedule_retry(self._backoff, now, chance)
        return due
