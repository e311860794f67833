"""A selector for asyncio's loop that rests while data flows: one look at the sockets collects what came meanwhile."""

from __future__ import annotations

import math
import selectors
import time
from typing import Any

from ingestor.core.clock import boottime

MAX_REST_SECONDS = 0.02  # whatever else a socket or another thread reports meanwhile waits until the end of a rest
# What may come during one rest. A socket holds at least 64 KiB, so that no sender has to wait for the end of a rest.
MAX_RESTING_BYTES = 48 << 10


class RestingSelector(selectors.DefaultSelector):
    """After ``rest``, looks at the sockets later, but never later than a timer, and at once if a callback is ready."""

    def __init__(self, rest_seconds: float) -> None:
        super().__init__()
        self.rest_seconds = rest_seconds
        self._looked_at = self._came_at = boottime()
        self._rest_until = 0.0

    def rest(self, received_bytes: int) -> None:
        """Rest until ``rest_seconds`` after the last look, unless so much was received that a socket might be full."""
        if received_bytes <= MAX_RESTING_BYTES:
            self._rest_until = self._looked_at + self.rest_seconds

    def came_at(self) -> float:
        """Return since when what is read now may have waited in its socket (boottime)."""
        return max(self._came_at, boottime() - self.rest_seconds)

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:  # callbacks are ready
            return super().select(timeout)
        began_at, left = boottime(), math.inf if timeout is None else timeout
        rest = min(self._rest_until - began_at, left)
        if rest > 0:
            time.sleep(rest)
            left -= rest
            if (ready := super().select(0)) or not left:
                self._looked_at, self._came_at = boottime(), began_at
                return ready
        ready = super().select(None if timeout is None else left)
        self._looked_at = self._came_at = boottime()
        return ready
