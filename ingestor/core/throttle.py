"""Let the first of many like items pass, count the repetitions, and report the count once per window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_KEYS = 1000  # keys that are tracked at once; items of further keys all pass


@dataclass(slots=True)
class _Window(Generic[T]):
    """What passed and what was suppressed for one key since the window opened."""

    ends_at: float
    passed: set[str]  # variants
    suppressed: int = 0  # since an item last passed
    last: tuple[str, T] | None = None  # variant and item that were suppressed last


class Throttle(Generic[T]):
    """Decides which items pass. ``now`` is in seconds, on a clock that never steps back.

    Within one window, the first item of a key passes, and so do items of other ``variants`` of that key up to a limit.
    The rest is suppressed. A window in which items were suppressed ends with the last of them and opens another one.
    """

    def __init__(self, window_seconds: float, *, variants: int = 1) -> None:
        """``variants`` is the number of different variants of one key that pass in one window."""
        self._window_seconds = window_seconds
        self._variants = variants
        self._windows: dict[str, _Window[T]] = {}  # the one that ends first comes first

    def __len__(self) -> int:
        """Return the number of keys that are tracked."""
        return len(self._windows)

    def admit(self, key: str, item: T, now: float, variant: str = "") -> int | None:
        """Return how many items of this key were suppressed since the last that passed; None if this one is, too.

        Call ``due`` first: a window that has ended but was not collected still suppresses.
        """
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) < MAX_KEYS:
                self._open(key, variant, now)
            return 0
        if variant in window.passed or len(window.passed) >= self._variants:
            window.suppressed += 1
            window.last = variant, item
            return None
        window.passed.add(variant)
        suppressed, window.suppressed, window.last = window.suppressed, 0, None
        return suppressed

    def due(self, now: float) -> Iterator[tuple[T, int]]:
        """Close the windows that have ended. Yield the last suppressed item of each, and their number with itself."""
        for key in list(takewhile(lambda key: self._windows[key].ends_at <= now, self._windows)):
            window = self._windows.pop(key)
            if window.last is not None:
                variant, item = window.last
                self._open(key, variant, now)
                yield item, window.suppressed

    def flush(self) -> list[tuple[T, int]]:
        """Close all windows and return what ``due`` would yield at their end."""
        windows, self._windows = self._windows, {}
        return [(window.last[1], window.suppressed) for window in windows.values() if window.last is not None]

    def next_due(self) -> float | None:
        """Return when the first window ends; None if none is open."""
        return next((window.ends_at for window in self._windows.values()), None)

    def _open(self, key: str, variant: str, now: float) -> None:
        self._windows[key] = _Window(now + self._window_seconds, {variant})
