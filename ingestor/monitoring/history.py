"""How the daemon did in the last hour and the last day, in memory: the status page's charts. Pure; time comes in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec


class MaxRing:
    """The greatest of what was seen in each step, for a bounded time. A step in which nobody looked is not there."""

    def __init__(self, *, step_seconds: int, keep: int) -> None:
        self.step_seconds = step_seconds
        self._points: deque[tuple[int, tuple[float, ...]]] = deque(maxlen=keep)  # (number of the step, what was seen)

    def add(self, at_seconds: float, seen: Sequence[float]) -> None:
        """``at_seconds`` on a clock that never steps back."""
        step = int(at_seconds // self.step_seconds)
        if self._points and self._points[-1][0] == step:
            seen = tuple(map(max, self._points.pop()[1], seen))
        self._points.append((step, tuple(seen)))

    def points(self, now_seconds: float) -> list[tuple[float, ...]]:
        """The oldest first: how many seconds ago the step began, and what was seen."""
        return [(round(now_seconds - step * self.step_seconds, 1), *seen) for step, seen in self._points]


class LoadHistory:
    """What came in a second, what waits in the spool, and for how long: an hour finely, a day coarsely."""

    def __init__(self) -> None:
        self._rings = {"hour": MaxRing(step_seconds=10, keep=360), "day": MaxRing(step_seconds=240, keep=360)}
        self._before: tuple[float, int] | None = None  # (at, head) of the look before

    def record(self, at_seconds: float, *, head_seq: int, waiting: int, lag_seconds: float) -> None:
        """Note how it is now. Called about every second; the clock is one that never steps."""
        if self._before is not None and at_seconds > self._before[0]:
            at, head = self._before
            received = (head_seq - head) / (at_seconds - at)
            for ring in self._rings.values():
                ring.add(at_seconds, (round(received, 1), waiting, round(lag_seconds, 2)))
        self._before = at_seconds, head_seq

    def to_json(self, now_seconds: float) -> bytes:
        """history.json: for each ring its step, and points of (age, entries received a second, waiting, lag)."""
        rings = {
            name: {"step_seconds": ring.step_seconds, "points": ring.points(now_seconds)}
            for name, ring in self._rings.items()
        }
        return msgspec.json.encode(rings)
