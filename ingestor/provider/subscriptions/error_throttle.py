"""Errors that the provider reports, at a pace that people and the spool can bear: all are counted, few are quoted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ingestor.core.entries import Fact

WINDOW_SECONDS = 60.0
QUOTED = 10  # different texts of one event that are recorded as they come, in one window


@dataclass(slots=True)
class ThrottleWindow:
    """What was said of one event, since the first of it came."""

    texts: set[str] = field(default_factory=set)  # that were recorded
    suppressed: int = 0  # that came since the last one recorded
    last: Fact | None = None  # of those suppressed

    def admits(self, text: str) -> bool:
        """Whether this is news, and there is room for it."""
        return text not in self.texts and len(self.texts) < QUOTED


class ErrorThrottle:
    """The ``provider_error`` facts of one group, on their way to ``record``.

    The first of an event is recorded at once, and so are the next few that say something else. The rest is counted, as
    ``suppressed`` in the detail of the next one recorded: the last of them when the minute is over, or at ``flush``.
    """

    def __init__(self, record: Callable[[Fact], object]) -> None:
        self._record = record
        self._windows: dict[str, ThrottleWindow] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def tell(self, fact: Fact) -> None:
        """One came. Its detail names the ``event`` and the ``text``."""
        event, text = fact.detail["event"], fact.detail["text"]
        window = self._windows.get(event)
        if window is None:
            self._open(event, fact, suppressed=0)
        elif window.admits(text):
            self._quote(window, fact, window.suppressed)
        else:
            window.suppressed += 1
            window.last = fact

    def flush(self) -> None:
        """Record now what was held back: nothing comes any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        windows, self._windows = self._windows, {}
        for window in windows.values():
            if window.last is not None:
                self._quote(window, window.last, window.suppressed - 1)

    def _open(self, event: str, fact: Fact, suppressed: int) -> None:
        window = self._windows[event] = ThrottleWindow()
        self._timers[event] = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._close, event)
        self._quote(window, fact, suppressed)

    def _close(self, event: str) -> None:
        window = self._windows.pop(event)
        del self._timers[event]
        if window.last is not None:
            self._open(event, window.last, window.suppressed - 1)

    def _quote(self, window: ThrottleWindow, fact: Fact, suppressed: int) -> None:
        window.texts.add(fact.detail["text"])
        window.suppressed, window.last = 0, None
        more = {"suppressed": suppressed} if suppressed else {}
        self._record(Fact(fact.kind, fact.at_us, {**fact.detail, **more}))
