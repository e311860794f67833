"""Bound the facts that a full spool takes: 5 % above ``spool.max_bytes`` must last until the database is back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ingestor.core.entries import BACKFILL_REQUESTED, Fact
from ingestor.core.throttle import Throttle

WINDOW_SECONDS = 3600.0
# The audit needs each of the first four. The last one, a command of an operator, repeats a backfill that is lost.
ALWAYS = frozenset({"started", "stopped", "crashed", "lost", BACKFILL_REQUESTED})


class FactLimit:
    """Selects the facts to spool. While the spool is full, facts that coverage does not need are counted.

    One of each kind and path passes per hour, with the number of those before it as ``suppressed``. Changes of a state
    or of the clock always pass: coverage is made from them, and they are not repeated. So do the kinds of ALWAYS.
    """

    def __init__(self, is_full: Callable[[], bool]) -> None:
        self._is_full = is_full
        self._throttle: Throttle[Fact] = Throttle(WINDOW_SECONDS)
        self._limited_until = -math.inf  # past the end of FULL, for a spool that is full again and again

    def select(self, fact: Fact, now: float) -> Iterator[Fact]:
        """Yield the summaries that are due, then the fact unless it is counted. ``now`` never steps back."""
        if self._is_full():
            self._limited_until = now + WINDOW_SECONDS
        if now >= self._limited_until:
            yield from self.flush()
            yield fact
            return
        for last, count in self._throttle.due(now):
            yield _summary(last, count)
        is_news = fact.state is None and fact.since_us is None and fact.until_us is None and fact.kind not in ALWAYS
        if not is_news or self._throttle.admit(f"{fact.kind} {fact.detail.get('path', '')}", fact, now) is not None:
            yield fact

    def flush(self) -> list[Fact]:
        """Return the summaries of what was counted so far."""
        return [_summary(fact, count) for fact, count in self._throttle.flush()]


def _summary(fact: Fact, count: int) -> Fact:
    """Return the last fact that was counted, with the number of those before it."""
    return Fact(fact.kind, fact.at_us, {**fact.detail, "suppressed": count - 1 + fact.detail.get("suppressed", 0)})
