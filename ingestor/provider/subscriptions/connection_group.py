"""Subscriptions that share a connection, and the loop that keeps it open: connect, serve, replace, reconnect."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ingestor.config.model import ProviderConfig, Subscription
from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import ClockReading, Clocks, boottime, wall_us
from ingestor.core.entries import Fact, SubscriptionKey
from ingestor.core.outage import Outage
from ingestor.errors import ConnectionFailed, ConnectionRefused, IngestorError, TokenRefused, TokenUnavailable
from ingestor.provider.auth import TokenSource
from ingestor.provider.socket.connection import CloseReason, Connection, ConnectionSettings, Sink, sanitize
from ingestor.provider.socket.protocol import ProtocolDetector
from ingestor.provider.subscriptions.connect_gate import NOT_NOW, ConnectGate
from ingestor.provider.subscriptions.counters import GroupCounters, GroupStatus
from ingestor.provider.subscriptions.error_throttle import ErrorThrottle
from ingestor.provider.subscriptions.eviction import EvictionDetector
from ingestor.provider.subscriptions.session import SubscriptionSession
from ingestor.provider.subscriptions.state_tracker import StateTracker
from ingestor.provider.subscriptions.states import Event, SubscriptionStates

Wait: TypeAlias = Coroutine[Any, Any, object]

RECONNECT = Backoff(first_seconds=1.0, cap_seconds=60.0)
RECONNECT_AFTER_RESTART = Backoff(first_seconds=1.0, cap_seconds=3.0)  # if the server was healthy a moment ago
RESTART_SECONDS = 60.0  # after which a server that was healthy counts as away, no longer as restarting
OVERLAP_SECONDS = 1.0  # how long an old connection stays open for the first data on its replacement
HEALTHY_SECONDS = 30.0  # a shorter session counts as another failure, so that a server that kicks is not hammered
EVICTED = (
    "the provider closed the old connection as soon as its replacement opened, twice in a row; it seems to allow one"
    " connection for each API key: set provider.renewal: reconnect, and provider.standby if several daemons use it"
)
_CLOSED_BY_US: dict[str, Event] = {"spool_full": "spool_full", "standby": "standby"}  # causes that are states


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupContext:
    """The dependencies and settings that all groups share."""

    tokens: TokenSource
    protocol_detector: ProtocolDetector
    sink: Sink
    states: SubscriptionStates
    record: Callable[[Fact], object]
    provider_errors: Counter[str]  # by event, over all groups
    provider: ProviderConfig
    gate: ConnectGate
    clocks: Clocks


class ConnectionGroup:
    """Keeps one connection open for its subscriptions until cancelled. ``tracker`` decides on their states."""

    def __init__(
        self, settings: ConnectionSettings, subscriptions: tuple[Subscription, ...], context: GroupContext
    ) -> None:
        self._settings = settings
        self._subscriptions = {subscription.key: subscription for subscription in subscriptions}
        self._context = context
        self.tracker = StateTracker(
            settings, self._subscriptions, context.states, context.provider.silence, context.clocks.max_late_us
        )
        self._tracker_timer: asyncio.TimerHandle | None = None
        self._sessions: set[SubscriptionSession] = set()  # the one in use, and the one that is to replace it
        self.wake_up = asyncio.Event()  # set to check whether the connection has to be replaced
        self._failures = 0
        self._retry_boottime = 0.0  # when replacing the connection may be tried again
        self._healthy_until_boottime = boottime()  # when the last session that was no failure ended
        self._eviction = EvictionDetector()
        self._outage = Outage()  # from the first failed attempt to the next connection
        self._counters = GroupCounters()
        self._error_throttle = ErrorThrottle(context.record)

    @property
    def keys(self) -> tuple[SubscriptionKey, ...]:
        return tuple(self._subscriptions)

    @property
    def connection(self) -> Connection | None:
        """The connection in use."""
        session = self.tracker.session
        return session.connection if session and session.connection.alive else None

    def status(self) -> GroupStatus:
        connections = [session.connection for session in self._sessions]
        return self._counters.status(self._settings, self.connection, connections)

    async def run(self) -> None:
        """Connect, serve, reconnect. Raises what the sink raises; every other error is retried."""
        self._track(self.keys, "not yet connected")
        try:
            while True:
                await self._context.gate.wait()
                await self._connect_and_serve()
        finally:
            await self._stop()

    @property
    def has_connections(self) -> bool:
        """Whether a connection is in use, or about to be."""
        return bool(self._sessions)

    async def disconnect_all(self, cause: Literal["spool_full", "standby"], reason: str) -> None:
        """Close the connections. None is opened until the gate is open."""
        for session in list(self._sessions):
            await session.close(cause, reason)
        if not self._sessions and self._context.states.affected(cause, self._subscriptions):
            self._set_all(cause, reason=reason)

    def add(self, subscriptions: Collection[Subscription]) -> None:
        """Add subscriptions, on the open connection if there is one."""
        if not subscriptions:
            return
        self._subscriptions |= {subscription.key: subscription for subscription in subscriptions}
        self.tracker.rebuild_channels()
        self._track([subscription.key for subscription in subscriptions], "added to the config")
        for session in self._sessions:
            session.add(subscriptions)

    def remove(self, subscriptions: Collection[Subscription]) -> None:
        """Remove subscriptions without affecting the others."""
        if not subscriptions:
            return
        keys = [subscription.key for subscription in subscriptions]
        for session in self._sessions:
            session.remove(subscriptions)
        self.tracker.remove(keys, "removed from the config", self._context.clocks.read())
        for key in keys:
            del self._subscriptions[key]
        self.tracker.rebuild_channels()

    # --- states ---

    def detect_silence(self, until_boottime: float) -> None:
        """Record and resubscribe silent subscriptions. See ``StateTracker.detect_silence``."""
        silent = self.tracker.detect_silence(until_boottime, self._context.clocks.read(), chance())
        if silent and self.tracker.session:
            self.tracker.session.resubscribe(silent)

    def heard_us(self, now: ClockReading) -> int:
        """Return when the connection in use was last heard, at most ``now``, by the wall clock as it is set then."""
        heard_us = self.tracker.heard_us(now)
        return now.wall_us if heard_us is None else min(heard_us, now.wall_us)

    def mark_unconfirmed(self, now: ClockReading) -> None:
        """Note an interruption that ends now. See ``StateTracker.mark_unconfirmed``."""
        self.wake_up.set()  # a deadline may have passed while timers stood still
        for session in self._sessions:
            session.connection.last_frame_at = now.boottime  # nothing was read: that was no silence of the provider
        self.tracker.mark_unconfirmed(now)
        self._set_tracker_timer()

    def _track(self, keys: Collection[SubscriptionKey], reason: str) -> None:
        self._context.states.apply(
            "added", keys, {"path": self._settings.path, "reason": reason}, self._context.clocks.read().wall_us
        )
        self.record_gate()

    def record_gate(self) -> None:
        """Record why no connection is opened, if the gate is closed."""
        closed = self._context.gate.closed_by
        if closed and self._context.states.affected(closed[0], self._subscriptions):
            self._set_all(closed[0], reason=closed[1])

    def _set_all(self, event: Event, since_at: float | None = None, kind: str | None = None, **detail: object) -> None:
        """Record an event that concerns every subscription, as of a boottime; default: the last byte, else now.

        See ``SubscriptionStates.apply``.
        """
        now, detail = self._context.clocks.read(), {"path": self._settings.path, **detail}
        since_us = self.tracker.heard_us(now) if since_at is None else now.wall_us_at(since_at)
        self._context.states.apply(event, self._subscriptions, detail, now.wall_us, since_us, kind=kind)

    def _on_answer(self, session: SubscriptionSession) -> None:
        self.tracker.note_answer(session, self._context.clocks.read())
        self._set_tracker_timer()

    def _set_tracker_timer(self) -> None:
        if self._tracker_timer is not None:
            self._tracker_timer.cancel()
        if (due_boottime := self.tracker.timer_boottime) < math.inf:
            wait = max(0.0, due_boottime - boottime())
            self._tracker_timer = asyncio.get_running_loop().call_later(wait, self._on_tracker_timer)

    def _on_tracker_timer(self) -> None:
        self.tracker.on_timer(self._context.clocks.read())
        self._set_tracker_timer()

    # --- connecting ---

    async def _connect_and_serve(self) -> None:
        try:
            connection = await self._open_connection()
        except (TokenRefused, TokenUnavailable) as error:
            self._counters.last_error = sanitize(error)
            return  # the token source has recorded it, and makes the next caller wait
        except ConnectionFailed as error:
            restarting = boottime() < self._healthy_until_boottime + RESTART_SECONDS
            await asyncio.sleep(self._note_failure(error, RECONNECT_AFTER_RESTART if restarting else RECONNECT))
            return
        session = self._start_session(connection)
        self._use(session)
        await self._serve(session)

    async def _open_connection(self) -> Connection:
        context = self._context
        token = await context.tokens.get()
        context.gate.check()
        try:
            async with context.gate.time_limit():
                version = await context.protocol_detector.detect(token.value)
                context.gate.check()
                connection = Connection(
                    self._settings, version, context.sink, self._on_connection_fact, context.clocks.came_at
                )
                await connection.open(token)
        except ConnectionFailed as error:
            if isinstance(error, ConnectionRefused):
                context.tokens.discard(token)
            context.protocol_detector.reset()
            raise
        if not context.gate.is_open:
            await connection.close("closed", NOT_NOW)
            raise ConnectionFailed(NOT_NOW)
        ended = self._outage.end(boottime())
        self._record_event("connected", connection=connection.id, protocol_version=version.value, **ended)
        return connection

    def _note_failure(self, error: IngestorError, backoff: Backoff) -> float:
        """Count a failed attempt, and record it if it changes a state or is news. Return the seconds to wait."""
        if not self._context.gate.is_open:
            return 0.0  # no attempt follows until it is
        self._failures += 1
        wait = backoff.full_jitter(self._failures, chance())
        reason, now = sanitize(error), boottime()
        is_news = self._outage.note_failure(reason, now)
        self._counters.note_failure(reason, self._outage.attempts, now + wait)
        # While a connection is being replaced, the old one is still in use, and no state changes.
        keys = () if self.tracker.session else self._context.states.affected("disconnected", self._subscriptions)
        if keys or is_news:
            attempts = {"failed_attempts": self._outage.attempts, "retry_in_seconds": round(wait, 1)}
            detail = {"path": self._settings.path, "reason": reason, **attempts}
            self._context.states.apply(
                "disconnected", keys, detail, self._context.clocks.read().wall_us, kind="connect_failed"
            )
        return wait

    def _start_session(self, connection: Connection) -> SubscriptionSession:
        session = SubscriptionSession(connection, self._subscriptions, self._on_answer, self._record_event)
        self._sessions.add(session)
        return session

    def _use(self, session: SubscriptionSession) -> None:
        self._counters.on_connected()
        self.tracker.follow(session, self._context.clocks.read())

    # --- one session after another ---

    async def _serve(self, session: SubscriptionSession) -> None:
        """Serve until the session, or the last of its replacements, ends. Where possible, each is replaced before."""
        while True:
            await self._wait_until_due(session)
            if not session.connection.alive:
                await self._on_disconnect(session)
                break
            if boottime() < self._due_boottime(session):
                continue
            if not self._token_changed(session):
                seconds = round(boottime() - session.connection.last_frame_at)
                reason = f"no data for {seconds} s; replacing the connection"
                self._record_event("silent", connection=session.connection.id, reason=reason)
            if self._context.provider.renewal == "reconnect":
                await session.close("renewed", "closed before reconnecting, because provider.renewal is reconnect")
                await self._on_disconnect(session)
                return
            replacement = await self._replace_connection(session)
            if replacement is None:
                break
            session = replacement
        await asyncio.sleep(RECONNECT.full_jitter(self._failures, chance()))

    async def _wait_until_due(self, session: SubscriptionSession) -> None:
        """Wait until the session ends, is due for replacement, or ``wake_up`` is set. Raises what ended its task."""
        task = session.task
        wait = max(0.0, self._due_boottime(session) - boottime())
        running = None if task.done() else task
        await _wait_for_any(session.connection.wait_closed(), self.wake_up.wait(), task=running, seconds=wait)
        self.wake_up.clear()
        if task.done() and not task.cancelled():
            task.result()

    def _token_changed(self, session: SubscriptionSession) -> bool:
        # True also if there is no token now: the newest one was refused, and the next attempt gets another.
        return self._context.tokens.current != session.connection.token

    def _due_boottime(self, session: SubscriptionSession) -> float:
        """Return when to replace the connection: for a new token, or because nothing arrives on it."""
        if not self._context.gate.permitted:
            return math.inf  # what is open stays open; ``wake_up`` is set when the permit is held again
        if self._token_changed(session):
            return self._retry_boottime
        return max(session.connection.last_frame_at + self._context.provider.silence, self._retry_boottime)

    async def _replace_connection(self, old: SubscriptionSession) -> SubscriptionSession | None:
        """Connect and subscribe on a new connection, then close the old one. Nothing is missed; duplicates are dropped.

        Returns the session in use: the old one if the attempt failed, None if the old one has ended as well.
        """
        attempt = asyncio.create_task(self._prepare_replacement(), name="replacement")
        try:
            await _wait_for_any(old.connection.wait_closed(), task=attempt)
            if not old.connection.alive:
                await self._on_disconnect(old)  # recorded at once, not when the attempt is over
            new = await attempt
        except (ConnectionFailed, TokenRefused, TokenUnavailable) as error:
            self._retry_boottime = boottime() + self._note_failure(error, RECONNECT)
            return old if self.tracker.session is old else None
        finally:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
        await self._hand_over(old, new)
        return new

    async def _prepare_replacement(self) -> SubscriptionSession:
        """Return a session whose first round was answered, while the old one is still in use."""
        session = self._start_session(await self._open_connection())
        await _wait_for_any(session.first_round_done.wait(), session.connection.wait_closed())
        if not session.connection.alive:
            await self._close_session(session)
            raise ConnectionFailed("the new connection ended before its subscriptions were answered")
        return session

    async def _hand_over(self, old: SubscriptionSession, new: SubscriptionSession) -> None:
        """Use the new session. Keep the old one open for a moment, because data may be slow to begin on the new one."""
        self._retry_boottime = 0.0
        self._failures = 0
        opened, now = new.connection.opened_at, boottime()
        if self._eviction.should_report(opened_at=opened or now, old_ended_at=old.connection.closed_at, now=now):
            self._record_event("evicted", connection=old.connection.id, reason=EVICTED)
        if self.tracker.session is old:
            await self._await_sign_of_life(old, new)
        self._use(new)
        if old in self._sessions:
            ends = (old.connection.wait_closed(), new.connection.wait_closed())
            await _wait_for_any(_first_frame(new.connection), *ends, seconds=OVERLAP_SECONDS)
            await self._close_session(old, "renewed", "replaced by a new connection")

    async def _await_sign_of_life(self, old: SubscriptionSession, new: SubscriptionSession) -> None:
        """Give the old connection a moment to show that it was alive when the new one was subscribed.

        It may be quiet: the answer to a repeated subscribe is a sign of life too.
        """
        answered_at = max(new.acknowledged.values(), default=0.0)
        repeated = [subscription for key, subscription in self._subscriptions.items() if key in old.acknowledged][:1]
        if not repeated or old.connection.last_activity_at >= answered_at:
            return
        ask = old.connection.resubscribe(repeated, lambda *_: None)
        waits = (_first_activity(old.connection, answered_at), ask, new.connection.wait_closed())
        await _wait_for_any(*waits, seconds=OVERLAP_SECONDS)

    # --- ends ---

    async def _on_disconnect(self, session: SubscriptionSession) -> None:
        """Record why the connection ended, as of its last sign of life. Raises what the sink raised, if anything."""
        connection = session.connection
        self.tracker.detach(self._context.clocks.read())
        self._counters.on_disconnected()
        try:
            self._note_end(connection, await connection.wait_closed())  # at once: heartbeats no longer name it
        finally:
            await self._close_session(session)

    def _note_end(self, connection: Connection, closed: CloseReason) -> None:
        self._failures += 1
        if connection.opened_at is not None and boottime() - connection.opened_at > HEALTHY_SECONDS:
            self._failures = 1
            self._healthy_until_boottime = boottime()
        self._counters.count_reconnect(closed)
        detail = {"connection": connection.id, "cause": closed.cause, "reason": closed.reason}
        event: Event = _CLOSED_BY_US.get(closed.cause, "disconnected")
        self._set_all(event, connection.last_activity_at, "disconnected", **detail)

    async def _close_session(self, session: SubscriptionSession, cause: str = "lost", reason: str = "ended") -> None:
        await session.close(cause, reason)
        if session in self._sessions:
            self._sessions.discard(session)
            self._counters.add_closed(session.connection)

    async def _stop(self) -> None:
        session = self.tracker.session
        self.tracker.detach(self._context.clocks.read())
        self._set_tracker_timer()
        self._error_throttle.flush()
        reason = "daemon stopped" if self._subscriptions else "no subscriptions left on this connection"
        self._set_all("stopped", session.connection.last_activity_at if session else None, reason=reason)
        for session in list(self._sessions):
            await self._close_session(session, "stopped", reason)

    # --- facts ---

    def _record_event(self, kind: str, **detail: object) -> None:
        """Record a fact that changes no state."""
        self._context.record(Fact(kind, wall_us(), {"path": self._settings.path, **detail}))

    def _on_connection_fact(self, fact: Fact) -> None:
        if fact.kind != "provider_error":
            self._context.record(fact)
            return
        self._context.provider_errors[fact.detail["event"]] += 1
        self._counters.last_error = fact.detail["text"]
        self._error_throttle.add(fact)


async def _first_frame(connection: Connection) -> None:
    """Wait for the first frame. Polls, because notifying would cost the receive path time for each frame."""
    while not connection.frames:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def _first_activity(connection: Connection, since_boottime: float) -> None:
    """Wait for the first byte at or after ``since_boottime``, or the end of the connection."""
    while connection.last_activity_at < since_boottime and connection.alive:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def _wait_for_any(*waits: Wait, task: asyncio.Task[Any] | None = None, seconds: float | None = None) -> None:
    """Wait until one is done. Cancel the ``waits``, not the ``task``. Results and errors are left to the caller."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait([*tasks, task] if task else tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in tasks:
            wait.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
