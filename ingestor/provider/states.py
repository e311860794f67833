"""What is said of one group's subscriptions: the answers on its connection, and interruptions, become their states."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ingestor.pipeline.entry import State, SubscriptionKey
from ingestor.provider.clock import Tick, tick
from ingestor.provider.coverage import Coverage
from ingestor.provider.session import Session

FLUSH_SECONDS = 0.1  # acknowledgements that come this close together make one fact
FLUSH_LIMIT_SECONDS = 5.0  # after the first of them
DOUBT_SECONDS = 0.1  # between looks whether a doubted connection is heard again


@dataclass(frozen=True, slots=True)
class Doubt:
    """After an interruption nobody knows whether the connection still lives, until something is heard on it."""

    session: Session
    keys: tuple[SubscriptionKey, ...]  # that were live on it
    since: Tick  # when we could listen again


class States:
    """Follows one session at a time: the one that counts."""

    def __init__(self, path: str, keys: Collection[SubscriptionKey], coverage: Coverage) -> None:
        """``keys`` may change under our hands: they are looked at anew each time."""
        self.session: Session | None = None
        self._path = path
        self._keys = keys
        self._coverage = coverage
        self._flush: asyncio.TimerHandle | None = None
        self._flush_by = 0.0  # by the loop's clock
        self._doubt: Doubt | None = None

    def all_are(self, kind: str, state: State, detail: dict[str, Any], since_us: int | None = None) -> None:
        """State a fact of that kind, by which every subscription is in ``state`` since then (default: now)."""
        self._coverage.change(kind, state, self._keys, self._detail(**detail), since_us)

    def follow(self, session: Session) -> None:
        """From now on this session's answers are the subscriptions' states."""
        before, self.session = self.session, session
        if before is not None:
            self._take_over(before, session)
        self.publish()

    def follow_none(self) -> None:
        """The session is over: say what was still unsaid of it."""
        self.publish()
        self.session = None

    def answers_came(self, session: Session) -> None:
        """Publish when no more come, or when the first of them has waited for long enough."""
        if session is not self.session:
            return
        loop = asyncio.get_running_loop()
        if self._flush is None:
            self._flush_by = loop.time() + FLUSH_LIMIT_SECONDS
        else:
            self._flush.cancel()
        self._flush = loop.call_at(min(loop.time() + FLUSH_SECONDS, self._flush_by), self.publish)

    def publish(self) -> None:
        """Turn the answers so far into states: one fact for all that were acknowledged, one for each reason why not."""
        self._cancel_flush()
        session = self.session
        if session is None:
            return
        detail = self._detail(connection=session.connection.id)
        waiting = [key for key in self._keys if key not in session.acknowledged and key not in session.refused]
        asked = self._not_yet(("live", "pending"), waiting)
        if asked:
            reason = "asked, not yet acknowledged"
            self._coverage.change("pending", "pending", asked, {**detail, "reason": reason})
        live = set(self._coverage.are("live", session.acknowledged))
        live.update(self._doubted(session))
        fresh = {key: at for key, at in session.acknowledged.items() if key not in live}
        if fresh:
            # From the last of them on: a state may be claimed late, never early.
            more = {"count": len(fresh)}
            self._coverage.change("subscribed", "live", fresh, detail | more, max(fresh.values()))
        for reason, keys in _by_reason(session.refused).items():
            if refused := self._not_yet(("refused",), keys):
                self._coverage.change("refused", "refused", refused, {**detail, "reason": reason})

    def doubt(self) -> None:
        """We did not listen for a while. What is live is so again, from now on, once something is heard.

        To be called before these subscriptions are said to be silent.
        """
        session = self.session
        if session is None:
            return
        keys = (*self._doubted(session), *self._coverage.are("live", self._keys))
        self._doubt = Doubt(session, keys, tick())
        self._listen_again(self._doubt)

    def _cancel_flush(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None

    def _doubted(self, session: Session) -> tuple[SubscriptionKey, ...]:
        return self._doubt.keys if self._doubt and self._doubt.session is session else ()

    def _listen_again(self, doubt: Doubt) -> None:
        """End the doubt when something was heard; a connection that ends, or has a successor, ends it as well."""
        connection = doubt.session.connection
        if self._doubt is not doubt:
            return
        if doubt.session is not self.session or not connection.alive:
            self._doubt = None
        elif connection.last_heard_at <= doubt.since.boottime:
            asyncio.get_running_loop().call_later(DOUBT_SECONDS, self._listen_again, doubt)
        else:
            self._doubt = None
            if silent := self._coverage.are("silent", doubt.keys):
                detail = self._detail(connection=connection.id)
                self._coverage.change("heard_again", "live", silent, detail, doubt.since.wall_us)
            self.publish()

    def _take_over(self, old: Session, new: Session) -> None:
        """What the old connection listened to and the new one does not was live until the old was last heard."""
        for reason, keys in _by_reason(new.refused).items():
            if lost := self._coverage.are("live", keys):
                detail = self._detail(connection=new.connection.id, reason=reason)
                self._coverage.change("refused", "refused", lost, detail, old.connection.last_heard_us)

    def _not_yet(self, states: tuple[State, ...], keys: Iterable[SubscriptionKey]) -> list[SubscriptionKey]:
        return [key for key in keys if (at := self._coverage[key]) is None or at.state not in states]

    def _detail(self, **more: object) -> dict[str, Any]:
        return {"path": self._path, **more}


def _by_reason(refused: Mapping[SubscriptionKey, str]) -> dict[str, list[SubscriptionKey]]:
    reasons: dict[str, list[SubscriptionKey]] = {}
    for key, reason in refused.items():
        reasons.setdefault(reason, []).append(key)
    return reasons
