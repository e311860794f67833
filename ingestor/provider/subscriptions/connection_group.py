"""Subscriptions that share a connection, and the loop that keeps them one: connect, serve, renew, connect again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingestor.config.model import Subscription
from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Channel, Fact, State, SubscriptionKey
from ingestor.errors import ConnectionFailed, ConnectionRefused, IngestorError, TokenRefused, TokenUnavailable
from ingestor.provider.auth import TokenSource
from ingestor.provider.socket.connection import Connection, ConnectionSettings, Sink, sanitize
from ingestor.provider.socket.protocol import ProtocolDetector
from ingestor.provider.subscriptions.activity import ActivitySpan
from ingestor.provider.subscriptions.counters import GroupCounters, GroupStatus
from ingestor.provider.subscriptions.error_throttle import ErrorThrottle
from ingestor.provider.subscriptions.eviction import EvictionDetector
from ingestor.provider.subscriptions.session import SubscriptionSession
from ingestor.provider.subscriptions.state_tracker import StateTracker
from ingestor.provider.subscriptions.states import SubscriptionStates

RECONNECT = Backoff(first_seconds=1.0, cap_seconds=60.0)
RESTARTING = Backoff(first_seconds=1.0, cap_seconds=3.0)  # where a server that was well is not there
RESTART_SECONDS = 60.0  # after which it is away, and no longer restarting
GRACE_SECONDS = 1.0  # in which a successor's first data is waited for
DATA_LOOK_SECONDS = 0.02
EVICTED = (
    "the provider ended the old connection as soon as its successor was there, twice in a row; it seems to allow one"
    " connection for each key: set provider.renewal: reconnect"
)
SPOOL_FULL = "the spool is full"
HEALTHY_SECONDS = 30.0  # a shorter session counts as another failure: a server that kicks must not be hammered


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupContext:
    """What all groups have in common."""

    tokens: TokenSource
    protocol_detector: ProtocolDetector
    sink: Sink
    coverage: SubscriptionStates
    record: Callable[[Fact], object]
    provider_errors: Counter[str]  # by event, counted here for all groups
    renewal: Literal["overlap", "reconnect"]
    silence_seconds: float
    gate: asyncio.Event  # set: connections may be opened


class ConnectionGroup:
    """Keeps one connection for its subscriptions, until cancelled."""

    def __init__(self, line: ConnectionSettings, subscriptions: tuple[Subscription, ...], around: GroupContext) -> None:
        self._line = line
        self._wanted = {one.key: one for one in subscriptions}
        self._around = around
        self._states = StateTracker(line, self._wanted, around.coverage, around.silence_seconds)
        self._sessions: set[SubscriptionSession] = set()  # the one that counts, and the one that is to follow it
        self._wake = asyncio.Event()
        self._failures = 0
        self._retry_at = 0.0  # boottime of the next try of a succession
        self._well_until = boottime()  # when the last session that was no failure ended
        self._evictions = EvictionDetector()
        self._tally = GroupCounters()
        self._complaints = ErrorThrottle(around.record)

    @property
    def keys(self) -> tuple[SubscriptionKey, ...]:
        """What its subscriptions are called."""
        return tuple(self._wanted)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def _connection(self) -> Connection | None:
        session = self._states.session
        return session.connection if session and session.connection.alive else None

    def wake(self) -> None:
        """There is a new token: see whether the connection needs a successor."""
        self._wake.set()

    def doubt(self) -> None:
        """We did not listen for a while: see ``StateTracker.doubt``."""
        self._wake.set()  # what became due meanwhile is due now, not when a timer that stood still as well has run out
        self._states.doubt()

    @property
    def channels(self) -> Iterable[Channel]:
        """What tells that data came for its subscriptions."""
        return self._states.channels.values()

    def hear(self, news: Mapping[Channel, ActivitySpan]) -> None:
        """Data was found in what came."""
        self._states.hear(news)

    def judge(self, until: float) -> None:
        """Who had no data for too long up to ``until`` (boottime)? See ``StateTracker.judge``."""
        self._states.judge(until)

    def status(self) -> GroupStatus:
        """A snapshot."""
        return self._tally.status(self._line, self._connection, [session.connection for session in self._sessions])

    async def run(self) -> None:
        """Connect, serve, connect again. Raises what the sink raises; everything else is waited out."""
        self._enter(self.keys, "not yet connected")
        try:
            while True:
                await self._around.gate.wait()
                await self._once()
        finally:
            await self._stop()

    async def disconnect_all(self, reason: str) -> None:
        """Close what is open, since the spool is full; nothing is opened again before the gate is."""
        for session in list(self._sessions):
            await session.close("spool_full", reason)
        if not self._sessions:
            self._states.all_are("spool_full", "spool_full", {"reason": reason})

    def add(self, subscriptions: Collection[Subscription]) -> None:
        """Want these too, from now on, on the connection that there is."""
        if not subscriptions:
            return
        self._wanted |= {one.key: one for one in subscriptions}
        self._states.rewire()
        self._enter([one.key for one in subscriptions], "added to the config")
        for session in self._sessions:
            session.add(subscriptions)

    def remove(self, subscriptions: Collection[Subscription]) -> None:
        """Want these no more; the others do not notice."""
        if not subscriptions:
            return
        keys = [one.key for one in subscriptions]
        for session in self._sessions:
            session.remove(subscriptions)
        self._states.leave(keys, "not in the config any more")
        for key in keys:
            del self._wanted[key]
        self._states.rewire()

    def _enter(self, keys: Collection[SubscriptionKey], reason: str) -> None:
        self._states.enter(keys, reason)
        if not self._around.gate.is_set():
            self._states.all_are("spool_full", "spool_full", {"reason": SPOOL_FULL})

    async def _stop(self) -> None:
        connection = self._connection
        self._states.follow_none()
        reason = "stopped by us" if self._wanted else "nothing is asked for on it any more"
        for session in list(self._sessions):
            await self._retire(session, "stopped", reason)
        self._complaints.flush()
        since_us = connection.last_activity_us if connection else None
        self._states.all_are("stopped", "stopped", {"reason": reason}, since_us)

    # --- connecting ---

    async def _once(self) -> None:
        try:
            connection = await self._open()
        except (TokenRefused, TokenUnavailable) as error:
            self._tally.last_error = sanitize(error)
            return  # the supply has told everybody, and makes the next caller wait
        except ConnectionFailed as error:
            await self._failed(error)
            return
        session = self._begin(connection)
        self._install(session)
        await self._serve(session)

    async def _open(self) -> Connection:
        around = self._around
        token = await around.tokens.get()
        try:
            version = await around.protocol_detector.detect(token.value)
            connection = Connection(self._line, version, around.sink, self._record)
            await connection.open(token)
        except ConnectionRefused:
            around.tokens.discard(token)
            around.protocol_detector.reset()
            raise
        except ConnectionFailed:
            around.protocol_detector.reset()
            raise
        if not around.gate.is_set():  # closed while this one was on its way
            await connection.close("spool_full", SPOOL_FULL)
            raise ConnectionFailed(SPOOL_FULL)
        self._tell("connected", connection=connection.id, protocol_version=version.value)
        return connection

    async def _failed(self, error: ConnectionFailed) -> None:
        restarting = boottime() < self._well_until + RESTART_SECONDS
        wait = self._next_wait(RESTARTING if restarting else RECONNECT)
        self._tally.last_error = sanitize(error)
        if self._around.gate.is_set():
            detail = {"reason": sanitize(error), "attempt": self._failures, "retry_in_seconds": round(wait, 1)}
            self._states.all_are("connect_failed", "disconnected", detail)
        await asyncio.sleep(wait)

    def _next_wait(self, backoff: Backoff) -> float:
        self._failures += 1
        return backoff.full_jitter(self._failures, chance())

    def _begin(self, connection: Connection) -> SubscriptionSession:
        session = SubscriptionSession(connection, self._wanted, self._states.answers_came, self._tell)
        self._sessions.add(session)
        return session

    def _install(self, session: SubscriptionSession) -> None:
        self._tally.connected()
        self._states.follow(session)

    # --- one session after the other ---

    async def _serve(self, session: SubscriptionSession) -> None:
        """Hold the session until it ends, or its successors do; where it can, a successor takes over before."""
        while True:
            await self._until_due(session)
            if not session.connection.alive:
                await self._lost(session)
                break
            if boottime() < self._due(session):
                continue
            if not self._stale(session):
                self._say_silent(session)
            if self._around.renewal == "reconnect":
                await session.close("renewed", "closed first, as provider.renewal says")
                await self._lost(session)
                return
            successor = await self._succeed(session)
            if successor is None:
                break
            session = successor
        await asyncio.sleep(RECONNECT.full_jitter(self._failures, chance()))

    async def _until_due(self, session: SubscriptionSession) -> None:
        """Wait for the session's end, a new token, or the time to replace it. Raises what ended the asking."""
        keeper = session.keeper
        left = max(0.0, self._due(session) - boottime())
        asking = [] if keeper.done() else [keeper]
        await _first(asking, session.connection.wait_closed(), self._wake.wait(), seconds=left)
        self._wake.clear()
        if keeper.done() and not keeper.cancelled():
            keeper.result()

    def _stale(self, session: SubscriptionSession) -> bool:
        # Also if there is none at the moment: then the newest was refused, and a fresh one is to be had.
        return self._around.tokens.current != session.connection.token

    def _due(self, session: SubscriptionSession) -> float:
        """Boottime at which this session needs a successor."""
        if self._stale(session):
            return self._retry_at
        return max(session.connection.last_frame_at + self._around.silence_seconds, self._retry_at)

    def _say_silent(self, session: SubscriptionSession) -> None:
        seconds = round(boottime() - session.connection.last_frame_at)
        self._tell("silent", connection=session.connection.id, reason=f"no data for {seconds} s; renewing")

    async def _succeed(self, old: SubscriptionSession) -> SubscriptionSession | None:
        """Connect and subscribe anew first, then close the old: nothing is missed, and what comes twice is known.

        Returns the session that counts from now on: the old one if there is no other, None if that has ended as well.
        """
        attempt = asyncio.create_task(self._prepare(), name="successor")
        try:
            await _first([attempt], old.connection.wait_closed())
            if not old.connection.alive:
                await self._lost(old)  # told at once, not when the attempt is over
            new = await attempt
        except (ConnectionFailed, TokenRefused, TokenUnavailable) as error:
            self._put_off(error)
            return old if self._states.session is old else None
        finally:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
        await self._hand_over(old, new)
        return new

    async def _prepare(self) -> SubscriptionSession:
        """A session that has been answered, while the other one still counts."""
        session = self._begin(await self._open())
        await _first([], session.settled.wait(), session.connection.wait_closed())
        if not session.connection.alive:
            await self._retire(session)
            raise ConnectionFailed("the successor did not last")
        return session

    async def _hand_over(self, old: SubscriptionSession, new: SubscriptionSession) -> None:
        """From now on the new one counts. The old one goes on for a moment: the new one may be slow to begin."""
        self._retry_at = 0.0
        self._failures = 0
        self._look_for_eviction(old.connection, new.connection)
        self._install(new)
        if old in self._sessions:
            ends = (old.connection.wait_closed(), new.connection.wait_closed())
            await _first([], _data(new.connection), *ends, seconds=GRACE_SECONDS)
            await self._retire(old, "renewed", "its successor has taken over")

    def _look_for_eviction(self, old: Connection, new: Connection) -> None:
        now = boottime()
        if self._evictions.succeeded(opened_at=new.opened_at or now, ended_at=old.closed_at, now=now):
            self._tell("evicted", connection=old.id, reason=EVICTED)

    def _put_off(self, error: IngestorError) -> None:
        wait = self._next_wait(RECONNECT)
        self._retry_at = boottime() + wait
        self._tally.last_error = sanitize(error)
        detail = {"reason": sanitize(error), "attempt": self._failures, "retry_in_seconds": round(wait, 1)}
        self._tell("connect_failed", **detail)

    async def _lost(self, session: SubscriptionSession) -> None:
        """State why and since when nothing is heard, and clear up. Raises what the sink raised, if that was the end."""
        connection = session.connection
        self._states.follow_none()
        self._tally.disconnected()
        try:
            ended = await connection.wait_closed()
        finally:
            await self._retire(session)
        self._count(connection)
        self._tally.ended(ended)
        detail = {"connection": connection.id, "cause": ended.cause, "reason": ended.reason}
        state: State = "spool_full" if ended.cause == "spool_full" else "disconnected"
        self._states.all_are("disconnected", state, detail, connection.last_activity_us)

    def _count(self, connection: Connection) -> None:
        now = boottime()
        self._failures += 1
        if connection.opened_at is not None and now - connection.opened_at > HEALTHY_SECONDS:
            self._failures = 1
            self._well_until = now

    async def _retire(self, session: SubscriptionSession, cause: str = "lost", reason: str = "cleared up") -> None:
        await session.close(cause, reason)
        if session in self._sessions:
            self._sessions.discard(session)
            self._tally.retired(session.connection)

    def _tell(self, kind: str, **detail: object) -> None:
        """State a fact that changes no state."""
        self._around.record(Fact(kind, wall_us(), {"path": self._line.path, **detail}))

    def _record(self, fact: Fact) -> None:
        """What connections report."""
        if fact.kind != "provider_error":
            self._around.record(fact)
            return
        self._around.provider_errors[fact.detail["event"]] += 1
        self._tally.last_error = fact.detail["text"]
        self._complaints.add(fact)


async def _data(connection: Connection) -> None:
    """Wait for its first frame. Looks now and then: the receive path has no time to tell."""
    while not connection.frames:  # noqa: ASYNC110
        await asyncio.sleep(DATA_LOOK_SECONDS)


async def _first(tasks: list[asyncio.Task[Any]], *more: Coroutine[Any, Any, Any], seconds: float | None = None) -> None:
    """Wait for one of them. ``tasks`` go on, the coroutines are ended; their outcomes are for others to look at."""
    own = [asyncio.ensure_future(one) for one in more]
    try:
        await asyncio.wait([*tasks, *own], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in own:
            one.cancel()
        await asyncio.gather(*own, return_exceptions=True)
