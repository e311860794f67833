"""In-memory history of load, for the charts of the status page: the last hour and the last day. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec


class MaxRing:
    """The maxima of some quantities in each step of time. A step without samples has no point."""

    def __init__(self, *, step_seconds: int, max_points: int) -> None:
        self.step_seconds = step_seconds
        self._points: deque[tuple[int, tuple[float, ...]]] = deque(maxlen=max_points)  # (number of the step, maxima)

    def add(self, at_seconds: float, sample: Sequence[float]) -> None:
        """Add a sample. ``at_seconds`` is on a clock that never steps back."""
        step = int(at_seconds // self.step_seconds)
        if self._points and self._points[-1][0] == step:
            sample = tuple(map(max, self._points.pop()[1], sample))
        self._points.append((step, tuple(sample)))

    def points(self, now_seconds: float) -> list[tuple[float, ...]]:
        """Return the age of each step in seconds, counted from its start, and its maxima. The oldest comes first."""
        return [(round(now_seconds - step * self.step_seconds, 1), *maxima) for step, maxima in self._points]


class LoadHistory:
    """Entries received per second, entries in the spool, and commit lag: an hour by 10 s, a day by 4 minutes."""

    def __init__(self) -> None:
        self._rings = {
            "hour": MaxRing(step_seconds=10, max_points=360),
            "day": MaxRing(step_seconds=240, max_points=360),
        }
        self._previous: tuple[float, int] | None = None  # at_seconds and head_seq

    def record(self, at_seconds: float, *, head_seq: int, waiting: int, lag_seconds: float) -> None:
        """Add the current load. Called about once per second; ``at_seconds`` is on a clock that never steps back."""
        if self._previous is not None and at_seconds > self._previous[0]:
            previous_at, previous_seq = self._previous
            rate = (head_seq - previous_seq) / (at_seconds - previous_at)
            for ring in self._rings.values():
                ring.add(at_seconds, (round(rate, 1), waiting, round(lag_seconds, 2)))
        self._previous = at_seconds, head_seq

    def to_json(self, now_seconds: float) -> bytes:
        """Return history.json: for each ring its step, and points of (age, entries per second, waiting, lag)."""
        rings = {
            name: {"step_seconds": ring.step_seconds, "points": ring.points(now_seconds)}
            for name, ring in self._rings.items()
        }
        return msgspec.json.encode(rings)
