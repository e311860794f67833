"""What is said of one group's subscriptions: answers on its connection, silences and interruptions become states."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingestor.config.model import Subscription
from ingestor.core.backoff import chance
from ingestor.core.clock import ClockReading, boottime, read_clocks
from ingestor.core.entries import Channel, State, SubscriptionKey
from ingestor.provider.socket.connection import ConnectionSettings
from ingestor.provider.subscriptions.activity import ActivitySpan
from ingestor.provider.subscriptions.session import SubscriptionSession
from ingestor.provider.subscriptions.silence import SilenceDetector
from ingestor.provider.subscriptions.states import SubscriptionStates

FLUSH_SECONDS = 0.1  # answers that come this close together make one fact
ROUND_FLUSH_SECONDS = 1.0  # the same, while more are awaited
FLUSH_LIMIT_SECONDS = 10.0  # after the first of them
DOUBT_SECONDS = 0.1  # between looks whether a doubted connection is heard again
TOGETHER_US = 5_000_000  # silences that began this close together make one fact, from the earliest on


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """After an interruption nobody knows whether the connection still lives, until something is heard on it."""

    session: SubscriptionSession
    keys: tuple[SubscriptionKey, ...]  # that were live on it
    since: ClockReading  # when we could listen again


class StateTracker:
    """Follows one session at a time: the one that counts."""

    def __init__(
        self,
        line: ConnectionSettings,
        wanted: Mapping[SubscriptionKey, Subscription],
        coverage: SubscriptionStates,
        silence_seconds: float,
    ) -> None:
        """``wanted`` is the group's own; after a change of it, ``rewire``."""
        self.session: SubscriptionSession | None = None
        self._line = line
        self._wanted = wanted
        self._coverage = coverage
        self._silence_seconds = silence_seconds
        self._silences = SilenceDetector(silence_seconds)
        self._last_us: dict[SubscriptionKey, int] = {}  # the last data heard
        self._flush: asyncio.TimerHandle | None = None
        self._flush_by = 0.0  # by the loop's clock
        self._doubt: Unconfirmed | None = None
        self.rewire()

    def rewire(self) -> None:
        """See by what it is told that data came for a subscription: any data, if it is alone or wants all tickers."""
        alone = len(self._wanted) == 1
        path, params = self._line.path, self._line.params
        self.channels = {key: (path, params, "" if alone else one.ticker) for key, one in self._wanted.items()}

    def all_are(self, kind: str, state: State, detail: dict[str, Any], since_us: int | None = None) -> None:
        """State a fact of that kind, by which every subscription is in ``state`` since then (default: now)."""
        self._coverage.change(kind, state, self._wanted, self._detail(**detail), since_us)

    def enter(self, keys: Iterable[SubscriptionKey], reason: str) -> None:
        """These are wanted from now on."""
        self._coverage.change("pending", "pending", keys, self._detail(reason=reason))

    def leave(self, keys: Collection[SubscriptionKey], reason: str) -> None:
        """These are not wanted any more. What was live was so until the connection was last heard."""
        session = self.session
        since_us = session.connection.last_activity_us if session else None
        self._coverage.change("stopped", "stopped", keys, self._detail(reason=reason, count=len(keys)), since_us)
        self._coverage.forget(keys)
        self._silences.ignore(keys)
        for key in keys:
            self._last_us.pop(key, None)

    def follow(self, session: SubscriptionSession) -> None:
        """From now on this session's answers are the subscriptions' states."""
        before, self.session = self.session, session
        if before is not None:
            self._take_over(before, session)
        self.publish()

    def follow_none(self) -> None:
        """The session is over: say what was still unsaid of it."""
        self.publish()
        self.session = None
        self._silences.ignore(self._wanted)

    def answers_came(self, session: SubscriptionSession) -> None:
        """Publish when no more come, or when the first of them has waited for long enough."""
        if session is not self.session:
            return
        loop = asyncio.get_running_loop()
        if self._flush is None:
            self._flush_by = loop.time() + FLUSH_LIMIT_SECONDS
        else:
            self._flush.cancel()
        patience = ROUND_FLUSH_SECONDS if session.rounds else FLUSH_SECONDS
        self._flush = loop.call_at(min(loop.time() + patience, self._flush_by), self.publish)

    def publish(self) -> None:
        """Turn the answers so far into states: one fact for all that were acknowledged, one for each reason why not."""
        self._cancel_flush()
        session = self.session
        if session is None:
            return
        detail = self._detail(connection=session.connection.id)
        waiting = [key for key in self._wanted if key not in session.acknowledged and key not in session.refused]
        if asked := self._not_yet(("live", "pending"), waiting):
            reason = "asked, not yet acknowledged"
            self._coverage.change("pending", "pending", asked, {**detail, "reason": reason})
        self._publish_acknowledged(session, detail)
        for reason, keys in _by_reason(session.refused).items():
            if refused := self._not_yet(("refused",), keys):
                self._silences.ignore(refused)
                self._coverage.change("refused", "refused", refused, {**detail, "reason": reason})

    def _publish_acknowledged(self, session: SubscriptionSession, detail: dict[str, Any]) -> None:
        known = {*self._coverage.are("live", session.acknowledged), *self._doubted(session)}
        fresh = {
            key: at for key, at in session.acknowledged.items() if key not in known and key not in self._silences
        }  # what is silent stays so until data comes: another connection proves nothing
        if fresh:
            self._silences.listen(fresh, boottime())
            # From the last of them on: a state may be claimed late, never early.
            more = {"count": len(fresh)}
            self._coverage.change("subscribed", "live", fresh, detail | more, max(fresh.values()))

    # --- silences ---

    def hear(self, news: Mapping[Channel, ActivitySpan]) -> None:
        """Data was found in what came. What was silent is live again from the first of it on."""
        now = boottime()
        again: dict[SubscriptionKey, int] = {}
        for key, channel in self.channels.items():
            if span := news.get(channel):
                self._last_us[key] = span.last_us
                if self._silences.heard(key, now):
                    again[key] = span.first_us
        for since_us, keys in _together(again, latest=True):
            if silent := self._coverage.are("silent", keys):
                self._coverage.change("heard_again", "live", silent, self._detail(count=len(silent)), since_us)

    def judge(self, until: float) -> None:
        """Say who had no data for too long up to ``until`` (boottime), and ask again for those whose turn it is.

        To be called only when all that was received until then has gone through ``hear``.
        """
        session = self.session
        if session is None:
            return
        reason = f"no data for {self._silence_seconds:g} s"
        began = {key: self._silent_from_us(key) for key in self._coverage.are("live", self._silences.found(until))}
        for since_us, keys in _together(began, latest=False):
            detail = self._detail(connection=session.connection.id, reason=reason, count=len(keys))
            self._coverage.change("silent", "silent", keys, detail, since_us)
        if due := self._silences.due(boottime(), chance()):
            session.ask_again([self._wanted[key] for key in due])

    def _silent_from_us(self, key: SubscriptionKey) -> int:
        standing = self._coverage[key]
        return max(self._last_us.get(key, 0), standing.since_us if standing else 0)

    # --- interruptions ---

    def doubt(self) -> None:
        """We did not listen for a while. What is live is so again, from now on, once something is heard.

        To be called before these subscriptions are said to be silent.
        """
        session = self.session
        if session is None:
            return
        self._last_us.clear()  # stamps of a clock that may have been set
        self._silences.listen(session.acknowledged, boottime())
        keys = (*self._doubted(session), *self._coverage.are("live", self._wanted))
        self._doubt = Unconfirmed(session, keys, read_clocks())
        self._listen_again(self._doubt)

    def _cancel_flush(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None

    def _doubted(self, session: SubscriptionSession) -> tuple[SubscriptionKey, ...]:
        return self._doubt.keys if self._doubt and self._doubt.session is session else ()

    def _listen_again(self, doubt: Unconfirmed) -> None:
        """End the doubt when something was heard; a connection that ends, or has a successor, ends it as well."""
        connection = doubt.session.connection
        if self._doubt is not doubt:
            return
        if doubt.session is not self.session or not connection.alive:
            self._doubt = None
        elif connection.last_activity_at <= doubt.since.boottime:
            asyncio.get_running_loop().call_later(DOUBT_SECONDS, self._listen_again, doubt)
        else:
            self._doubt = None
            if silent := self._coverage.are("silent", doubt.keys):
                detail = self._detail(connection=connection.id)
                self._coverage.change("heard_again", "live", silent, detail, doubt.since.wall_us)
            self.publish()

    def _take_over(self, old: SubscriptionSession, new: SubscriptionSession) -> None:
        """What the old connection listened to and the new one does not was live until the old was last heard."""
        for reason, keys in _by_reason(new.refused).items():
            if lost := self._coverage.are("live", keys):
                self._silences.ignore(lost)
                detail = self._detail(connection=new.connection.id, reason=reason)
                self._coverage.change("refused", "refused", lost, detail, old.connection.last_activity_us)

    def _not_yet(self, states: tuple[State, ...], keys: Iterable[SubscriptionKey]) -> list[SubscriptionKey]:
        return [key for key in keys if (at := self._coverage[key]) is None or at.state not in states]

    def _detail(self, **more: object) -> dict[str, Any]:
        return {"path": self._line.path, **more}


def _by_reason(refused: Mapping[SubscriptionKey, str]) -> dict[str, list[SubscriptionKey]]:
    reasons: dict[str, list[SubscriptionKey]] = {}
    for key, reason in refused.items():
        reasons.setdefault(reason, []).append(key)
    return reasons


def _together(times_us: Mapping[SubscriptionKey, int], *, latest: bool) -> Iterator[tuple[int, list[SubscriptionKey]]]:
    """Those whose times lie some seconds apart at most, with the latest or the earliest of them."""
    group: list[SubscriptionKey] = []
    for key in sorted(times_us, key=times_us.__getitem__):
        if group and times_us[key] - times_us[group[0]] > TOGETHER_US:
            yield times_us[group[-1 if latest else 0]], group
            group = []
        group.append(key)
    if group:
        yield times_us[group[-1 if latest else 0]], group
