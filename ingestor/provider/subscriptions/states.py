"""Which state each subscription is in, and since when. Every change becomes a fact, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ingestor.core.clock import wall_us
from ingestor.core.entries import Fact, State, SubscriptionKey


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """What can be said of one subscription now."""

    state: State
    since_us: int  # our wall clock
    reason: str = ""


class SubscriptionStates:
    """The standings of all subscriptions of this daemon."""

    def __init__(self, record: Callable[[Fact], object]) -> None:
        self._record = record
        self._standings: dict[SubscriptionKey, SubscriptionState] = {}

    def __getitem__(self, key: SubscriptionKey) -> SubscriptionState | None:
        return self._standings.get(key)

    def are(self, state: State, keys: Iterable[SubscriptionKey]) -> list[SubscriptionKey]:
        """Those of ``keys`` that are in ``state``."""
        return [key for key in keys if (standing := self._standings.get(key)) and standing.state == state]

    def change(
        self,
        kind: str,
        state: State,
        keys: Iterable[SubscriptionKey],
        detail: dict[str, Any],
        since_us: int | None = None,
    ) -> None:
        """Record that ``keys`` are in ``state`` since ``since_us`` (default: now); those already in it stay.

        The fact is recorded even if no state changed: it did happen. Where ``since_us`` lies before the state that it
        ends (a connection on which nothing more was heard), that state has lasted no time at all.
        """
        now = wall_us()
        changed = [key for key in keys if (at := self._standings.get(key)) is None or at.state != state]
        for key in changed:
            since = now if since_us is None else max(since_us, self._since(key))
            self._standings[key] = SubscriptionState(state, since, str(detail.get("reason", "")))
        self._record(Fact(kind, now, detail, state if changed else None, tuple(changed), since_us if changed else None))

    def forget(self, keys: Iterable[SubscriptionKey]) -> None:
        """These are nobody's any more; what they are in must have been recorded."""
        for key in keys:
            self._standings.pop(key, None)

    def rerecord_states(self) -> None:
        """Record every standing once more, as of now: one fact for each state."""
        now = wall_us()
        by_state: dict[State, list[SubscriptionKey]] = {}
        for key, standing in self._standings.items():
            by_state.setdefault(standing.state, []).append(key)
        for state, keys in by_state.items():
            self._record(Fact("restated", now, {"reason": "said again for a new instance"}, state, tuple(keys)))

    def _since(self, key: SubscriptionKey) -> int:
        standing = self._standings.get(key)
        return standing.since_us if standing else 0
