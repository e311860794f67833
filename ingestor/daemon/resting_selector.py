"""A selector for asyncio's loop that rests while data flows: one look at the sockets collects what came meanwhile."""

from __future__ import annotations

import math
import selectors
import time
from typing import Any

from ingestor.core.clock import boottime

MAX_REST_SECONDS = 0.02  # whatever a socket or another thread reports meanwhile waits until the end of a rest
# What may come during one rest. A socket holds at least 64 KiB, so that no sender has to wait for the end of a rest.
MAX_RESTING_BYTES = 48 << 10


class RestingSelector(selectors.DefaultSelector):
    """After ``rest``, lets what comes wait for more, but never past a timer. Ready callbacks do not wait."""

    def __init__(self, rest_seconds: float) -> None:
        super().__init__()
        self.rest_seconds = rest_seconds
        self._looked_at = self._came_at = boottime()
        self._flows_until = 0.0

    def rest(self, received_bytes: int) -> None:
        """If something comes within ``rest_seconds`` after the last look, read it that much later, with what follows.

        If so much was received that a socket might be full by then, read it at once.
        """
        if received_bytes <= MAX_RESTING_BYTES:
            self._flows_until = self._looked_at + self.rest_seconds

    def came_at(self) -> float:
        """Return since when what is read now may have waited in its socket (boottime)."""
        return max(self._came_at, boottime() - self.rest_seconds)

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:  # callbacks are ready
            return super().select(timeout)
        timer_at = math.inf if timeout is None else boottime() + timeout
        ready = super().select(timeout)
        self._looked_at = self._came_at = boottime()
        if ready and self._came_at < self._flows_until:
            # From when it came, not from the last look: a third fewer looks, and syncs, at 100 events a second.
            time.sleep(max(min(self.rest_seconds, timer_at - self._came_at), 0.0))
            ready = super().select(0)
            self._looked_at = boottime()
        return ready
