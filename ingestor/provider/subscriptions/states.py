"""Decide which state each subscription is in, and record every change as a fact.

    added ──▶ pending ───── acknowledged ─────▶ live ── no_data, interrupted ──▶ silent
                 │                              ▲  │▲                              │
              rejected       ┌─ acknowledged ───┘  │└───────── confirmed ──────────┘
                 ▼           │                     │
              refused ───────┘ ◀──── rejected ─────┘

    any state ── disconnected ──▶ disconnected ─┐
    any state ── token_failed ──▶ token_failed ─┼─ requested, acknowledged, rejected ──▶ pending, live, refused
    any state ── spool_full ────▶ spool_full ───┤
    any state ── standby ───────▶ standby ──────┘
    any state ── stopped ───────▶ stopped, which is final: a subscription that is added again is a new one

    A new connection also takes subscriptions from silent and refused back to pending (requested), and from silent to
    refused (rejected). A subscription is new until it is added; it may be token_failed, spool_full or standby before
    that.

``crashed`` and ``lost`` are set elsewhere, because only the next run can tell. At its start ``daemon.factory`` records
``crashed`` after an unclean shutdown, ``lost`` if the spool was quarantined, and ``stopped`` for the subscriptions that
were removed from the config in between. ``store.write.batch_writer`` writes ``lost`` if the spool no longer holds
entries that the database lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from ingestor.core.entries import Fact, State, SubscriptionKey

Event: TypeAlias = Literal[
    "added",  # it is in the config, and nothing was sent yet
    "requested",  # the current connection has not answered its subscribe yet
    "acknowledged",  # the provider accepted the subscribe
    "rejected",  # the provider refused the subscribe, or did not answer it in time
    "no_data",  # no data for as long as provider.silence
    "interrupted",  # the process stood still, or the clock was set
    "confirmed",  # data after a silence, or any sign of life of the connection after an interruption
    "disconnected",  # its connection was lost, or could not be opened
    "token_failed",  # there is no token to connect with
    "spool_full",  # its connection was closed, or not opened, because the spool is full
    "standby",  # its connection was closed, or not opened, because another instance receives
    "stopped",  # it was removed from the config, or the daemon stops
]

# Every state that can end. None: a new subscription.
_ANY = (None, *(state for state in get_args(State) if state not in ("stopped", "crashed", "lost")))
# Event, the states in which it has an effect, the state to which it leads. Some rows are for races, such as a token
# failure between the end of a connection and its "disconnected".
_RULES: tuple[tuple[Event, tuple[State | None, ...], State], ...] = (
    ("added", (None, "token_failed", "spool_full", "standby"), "pending"),
    ("requested", ("silent", "refused", "disconnected", "token_failed", "spool_full", "standby"), "pending"),
    # From silent only after an interruption: an answer proves nothing about missing data (see StateTracker.publish).
    ("acknowledged", ("pending", "silent", "refused", "disconnected", "token_failed", "spool_full", "standby"), "live"),
    ("rejected", ("pending", "live", "silent", "disconnected", "token_failed", "spool_full", "standby"), "refused"),
    ("no_data", ("live",), "silent"),
    ("interrupted", ("live",), "silent"),
    ("confirmed", ("silent",), "live"),
    ("disconnected", ("pending", "live", "silent", "refused", "token_failed", "spool_full", "standby"), "disconnected"),
    ("token_failed", _ANY, "token_failed"),
    ("spool_full", _ANY, "spool_full"),
    ("standby", _ANY, "standby"),
    ("stopped", _ANY, "stopped"),
)
TRANSITIONS: Mapping[tuple[State | None, Event], State] = {
    (state, event): target for event, states, target in _RULES for state in states if state != target
}
_TARGETS: Mapping[Event, State] = {event: target for event, _, target in _RULES}
_KINDS: Mapping[Event, str] = {"acknowledged": "subscribed", "confirmed": "heard_again"}  # else the name of the state


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """The state of one subscription, since when, and why."""

    state: State
    since_us: int  # our wall clock
    reason: str = ""


class SubscriptionStates:
    """The states of all subscriptions of this daemon. Each change is a fact, which goes to ``record``."""

    def __init__(self, record: Callable[[Fact], object]) -> None:
        self._record = record
        self._states: dict[SubscriptionKey, SubscriptionState] = {}

    def __getitem__(self, key: SubscriptionKey) -> SubscriptionState | None:
        return self._states.get(key)

    def since_us(self, key: SubscriptionKey) -> int:
        """Return when the current state began; 0 for a new subscription."""
        return current.since_us if (current := self._states.get(key)) else 0

    def in_state(self, state: State, keys: Iterable[SubscriptionKey]) -> list[SubscriptionKey]:
        """Return those of ``keys`` that are in this state."""
        return [key for key in keys if self._state_of(key) == state]

    def affected(self, event: Event, keys: Iterable[SubscriptionKey]) -> list[SubscriptionKey]:
        """Return those of ``keys`` whose state the event changes."""
        return [key for key in keys if (self._state_of(key), event) in TRANSITIONS]

    def apply(
        self,
        event: Event,
        keys: Iterable[SubscriptionKey],
        detail: dict[str, Any],
        now_us: int,
        since_us: int | None = None,
        *,
        kind: str | None = None,
    ) -> None:
        """Change the state of those ``keys`` that the event affects, as of ``since_us`` (default: now).

        One fact is recorded even if no state changed, because the event did happen. ``kind`` replaces its usual kind.
        Where ``since_us`` lies before the start of the state that it ends (a connection on which nothing more came),
        that state lasted no time at all.
        """
        target = _TARGETS[event]
        changed = self.affected(event, keys)
        for key in changed:
            since = now_us if since_us is None else max(since_us, self.since_us(key))
            self._states[key] = SubscriptionState(target, since, str(detail.get("reason", "")))
        state, since_us = (target, since_us) if changed else (None, None)
        fact_kind = kind or _KINDS.get(event, target)
        self._record(Fact(fact_kind, now_us, detail, state, tuple(changed), since_us))

    def shift(self, step_us: int) -> None:
        """Convert all times to a clock that was set ahead by ``step_us``, or back if that is negative."""
        for key, current in self._states.items():
            self._states[key] = replace(current, since_us=current.since_us + step_us)

    def forget(self, keys: Iterable[SubscriptionKey]) -> None:
        """Drop subscriptions that were removed. Their last state must have been recorded."""
        for key in keys:
            self._states.pop(key, None)

    def record_all(self, now_us: int, live_since_us: int | None = None) -> None:
        """Record every state again, as of now: one fact for each state.

        Those that are live were so since ``live_since_us``, or since they became it: one fact for each of these times.
        """
        groups: dict[tuple[State, int | None], list[SubscriptionKey]] = {}
        for key, current in self._states.items():
            since_us = None
            if current.state == "live" and live_since_us is not None:
                since_us = min(max(current.since_us, live_since_us), now_us)  # the clock may have been set back
            groups.setdefault((current.state, since_us), []).append(key)
        detail = {"reason": "re-recorded for a new instance id"}
        for (state, since_us), keys in groups.items():
            self._record(Fact("restated", now_us, detail, state, tuple(keys), since_us))

    def _state_of(self, key: SubscriptionKey) -> State | None:
        return current.state if (current := self._states.get(key)) else None
