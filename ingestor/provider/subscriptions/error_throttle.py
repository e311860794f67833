"""Limit how many of the errors that the provider reports are recorded: all are counted, few are quoted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ingestor.core.entries import Fact
from ingestor.core.throttle import Throttle

WINDOW_SECONDS = 60.0
MAX_QUOTED = 10  # different texts of one event that are recorded as they arrive, in one window


class ErrorThrottle:
    """Passes the ``provider_error`` facts of one connection group on to ``record``.

    The first fact of an event is recorded at once, and so are the next few with a different text. The rest are counted,
    as ``suppressed`` in the detail of the next fact recorded: the last of them, after a minute or at ``flush``.
    """

    def __init__(self, record: Callable[[Fact], object]) -> None:
        self._record = record
        self._throttle: Throttle[Fact] = Throttle(WINDOW_SECONDS, variants=MAX_QUOTED)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, fact: Fact) -> None:
        """Record or count a fact. Its detail names the ``event`` and the ``text``."""
        now = asyncio.get_running_loop().time()
        suppressed = self._throttle.admit(fact.detail["event"], fact, now, variant=fact.detail["text"])
        if suppressed is not None:
            self._emit(fact, suppressed)
        self._set_timer()

    def flush(self) -> None:
        """Record now what was held back, because the group ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for fact, count in self._throttle.flush():
            self._emit(fact, count - 1)

    def _set_timer(self) -> None:
        due_at = self._throttle.next_due()
        if self._timer is None and due_at is not None:
            # By the planned time: the loop may call a moment early, by its own resolution.
            self._timer = asyncio.get_running_loop().call_at(due_at, self._on_timer, due_at)

    def _on_timer(self, now: float) -> None:
        self._timer = None
        for fact, count in self._throttle.due(now):
            self._emit(fact, count - 1)
        self._set_timer()

    def _emit(self, fact: Fact, suppressed: int) -> None:
        extra = {"suppressed": suppressed} if suppressed else {}
        self._record(Fact(fact.kind, fact.at_us, {**fact.detail, **extra}))
