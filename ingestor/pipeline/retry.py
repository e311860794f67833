"""Retry what the database could not do during an outage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ingestor.core.backoff import Backoff, chance
from ingestor.errors import DatabaseUnavailable
from ingestor.pipeline.writer_status import WriterStatus

BACKOFF = Backoff(first_seconds=0.25, cap_seconds=15.0)
DRAIN_RETRY_SECONDS = 0.5  # between two attempts while draining: there is not much time left


class DatabaseRetry:
    """Calls again, after a backoff, what raises DatabaseUnavailable. Other errors are raised at once."""

    def __init__(
        self,
        status: WriterStatus,
        stop: threading.Event,
        draining: threading.Event,
        on_outage: Callable[[str, float], None],
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """``on_outage`` receives the error and the delay in seconds, after every failed attempt.

        ``sleep`` replaces the wait between two attempts, which ends early when ``stop`` or ``draining`` is set.
        """
        self._status = status
        self._stop = stop
        self._draining = draining
        self._on_outage = on_outage
        self._sleep = sleep or self._wait

    def run(self, attempt: Callable[[], None]) -> bool:
        """Call ``attempt`` until it succeeds. Returns False if it failed and ``stop`` is set."""
        failures = 0
        while True:
            try:
                attempt()
            except DatabaseUnavailable as error:
                self._status.database_up, self._status.error = False, str(error)
                if self._stop.is_set():
                    return False
                failures += 1
                delay_seconds = BACKOFF.full_jitter(failures, chance())
                self._on_outage(str(error), delay_seconds)
                self._sleep(delay_seconds)
            else:
                self._status.database_up, self._status.error = True, None
                return True

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._stop.wait(min(left, DRAIN_RETRY_SECONDS)):
            if self._draining.is_set():
                return
