"""Subscriptions that share a connection, and the loop that keeps them one: connect, subscribe, renew, connect again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from ingestor.config.model import Subscription
from ingestor.errors import ConnectionFailed, ConnectionRefused, IngestorError, TokenRefused, TokenUnavailable
from ingestor.pipeline.entry import Fact, State, SubscriptionKey
from ingestor.provider.backoff import Backoff, chance
from ingestor.provider.clock import Tick, boottime, tick, wall_us
from ingestor.provider.complaints import Complaints
from ingestor.provider.connection import Connection, Ended, Line, Sink, outside
from ingestor.provider.coverage import Coverage
from ingestor.provider.dialect import Dialects
from ingestor.provider.token import TokenSupply

RECONNECT = Backoff(first_seconds=1.0, cap_seconds=60.0)
RESUBSCRIBE = Backoff(first_seconds=5.0, cap_seconds=3600.0)
HEALTHY_SECONDS = 30.0  # a shorter session counts as another failure: a server that kicks must not be hammered
FLUSH_SECONDS = 0.1  # acknowledgements that come this close together make one fact
DOUBT_SECONDS = 0.1  # between looks whether a doubted connection is heard again


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """A group as status and metrics show it."""

    path: str
    params: str
    connection_id: str  # empty without a connection
    dialect: str  # "4" or "3"; empty without a connection
    connected: bool
    since_us: int | None  # when it was connected, or lost; None before the first connection
    frames: int  # of all its connections so far
    last_frame_us: int | None
    reconnects: Mapping[str, int]  # by cause
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all groups have in common."""

    tokens: TokenSupply
    dialects: Dialects
    sink: Sink
    coverage: Coverage
    record: Callable[[Fact], object]
    complaints: Counter[str]  # by event, counted here for all groups
    renewal: Literal["overlap", "reconnect"]
    silence_seconds: float
    gate: asyncio.Event  # set: connections may be opened


class Session:
    """One connection of a group, and what was answered on it."""

    def __init__(self, connection: Connection, changed: Callable[[Session], None]) -> None:
        self.connection = connection
        self.acknowledged: dict[SubscriptionKey, int] = {}  # when, by our wall clock
        self.refused: dict[SubscriptionKey, str] = {}  # why
        self.settled = asyncio.Event()  # everything was asked for once, and answered or not in time
        self.keeper: asyncio.Task[None] | None = None
        self._changed = changed

    def answered(self, subscription: Subscription, error: str | None) -> None:
        """Note the provider's answer, or that there was none. What was acknowledged stays so while this lasts."""
        if error is None:
            self.acknowledged[subscription.key] = wall_us()
            self.refused.pop(subscription.key, None)
        elif subscription.key not in self.acknowledged:  # else it answers our asking again before the first answer came
            self.refused[subscription.key] = error
        self._changed(self)

    async def close(self, cause: str, reason: str) -> None:
        """End the connection and the asking."""
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.wait([self.keeper])
        await self.connection.close(cause, reason)


@dataclass(frozen=True, slots=True)
class Doubt:
    """After an interruption nobody knows whether the connection still lives, until something is heard on it."""

    session: Session
    keys: tuple[SubscriptionKey, ...]  # that were live on it
    since: Tick  # when we could listen again


class Group:
    """Keeps one connection for its subscriptions, until cancelled."""

    def __init__(self, line: Line, subscriptions: tuple[Subscription, ...], around: Surroundings) -> None:
        self._line = line
        self._subscriptions = subscriptions
        self._around = around
        self._session: Session | None = None  # the one that counts
        self._sessions: set[Session] = set()  # with the one that is to follow it
        self._wake = asyncio.Event()
        self._flush: asyncio.TimerHandle | None = None
        self._doubt: Doubt | None = None
        self._failures = 0
        self._retry_at = 0.0  # boottime of the next try of a succession
        self._frames = 0
        self._last_frame_us: int | None = None
        self._since_us: int | None = None
        self._reconnects: Counter[str] = Counter()
        self._last_error = ""
        self._complaints = Complaints(around.record)

    @property
    def keys(self) -> tuple[SubscriptionKey, ...]:
        """What its subscriptions are called."""
        return tuple(one.key for one in self._subscriptions)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._session is not None and self._session.connection.alive

    def wake(self) -> None:
        """There is a new token: see whether the connection needs a successor."""
        self._wake.set()

    def doubt(self) -> None:
        """We did not listen for a while. What is live here is so again, from now on, once something is heard.

        To be called before these subscriptions are said to be silent.
        """
        self._wake.set()  # what became due meanwhile is due now, not when a timer that stood still as well has run out
        session = self._session
        if session is None:
            return
        keys = (*self._doubted(session), *self._around.coverage.are("live", self.keys))
        self._doubt = Doubt(session, keys, tick())
        self._listen_again(self._doubt)

    def status(self) -> GroupStatus:
        """A snapshot."""
        now = self._session.connection if self._session and self.connected else None
        open_frames = sum(session.connection.frames for session in self._sessions)
        frame_times = [session.connection.last_frame_us for session in self._sessions]
        return GroupStatus(
            path=self._line.path,
            params=self._line.params,
            connection_id=now.id if now else "",
            dialect=now.dialect.value if now else "",
            connected=now is not None,
            since_us=self._since_us,
            frames=self._frames + open_frames,
            last_frame_us=max((at for at in [*frame_times, self._last_frame_us] if at is not None), default=None),
            reconnects=MappingProxyType(dict(self._reconnects)),
            last_error=self._last_error,
        )

    async def run(self) -> None:
        """Connect, serve, connect again. Raises what the sink raises; everything else is waited out."""
        self._around.coverage.change("pending", "pending", self.keys, self._detail(reason="not yet connected"))
        try:
            while True:
                await self._around.gate.wait()
                await self._once()
        finally:
            await self._stop()

    async def hang_up(self, reason: str) -> None:
        """Close what is open, since the spool is full; nothing is opened again before the gate is."""
        for session in list(self._sessions):
            await session.close("spool_full", reason)
        if not self._sessions:
            self._around.coverage.change("spool_full", "spool_full", self.keys, self._detail(reason=reason))

    async def _once(self) -> None:
        try:
            connection = await self._open()
        except (TokenRefused, TokenUnavailable) as error:
            self._last_error = outside(error)
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
            dialect = await around.dialects.of(token.value)
            connection = Connection(self._line, dialect, around.sink, self._record)
            await connection.open(token)
        except ConnectionRefused:
            around.tokens.discard(token)
            around.dialects.forget()
            raise
        except ConnectionFailed:
            around.dialects.forget()
            raise
        if not around.gate.is_set():  # closed while this one was on its way
            await connection.close("spool_full", "the spool is full")
            raise ConnectionFailed("the spool is full")
        around.record(Fact("connected", wall_us(), self._detail(connection=connection.id, dialect=dialect.value)))
        return connection

    async def _failed(self, error: ConnectionFailed) -> None:
        wait = self._next_wait()
        detail = self._detail(reason=outside(error), attempt=self._failures, retry_in_seconds=round(wait, 1))
        self._last_error = outside(error)
        if self._around.gate.is_set():
            self._around.coverage.change("connect_failed", "disconnected", self.keys, detail)
        await asyncio.sleep(wait)

    def _next_wait(self) -> float:
        self._failures += 1
        return RECONNECT.full_jitter(self._failures, chance())

    # --- one session ---

    def _begin(self, connection: Connection) -> Session:
        session = Session(connection, self._answers_came)
        session.keeper = asyncio.create_task(self._keep_subscribed(session), name=f"subscribing {connection.id}")
        self._sessions.add(session)
        return session

    def _install(self, session: Session) -> None:
        """From now on this session's answers are the subscriptions' states."""
        self._session = session
        self._since_us = wall_us()
        self._last_error = ""
        self._publish()

    async def _keep_subscribed(self, session: Session) -> None:
        """Ask for all; then, ever more rarely, again for those that were refused or not answered."""
        rounds = 0
        wanted = list(self._subscriptions)
        while wanted:
            await session.connection.subscribe(wanted, session.answered)
            session.settled.set()
            rounds += 1
            wanted = self._missing(session)
            if wanted:
                await asyncio.sleep(RESUBSCRIBE.half_jitter(rounds, chance()))
                wanted = self._missing(session)  # some answers come late

    def _missing(self, session: Session) -> list[Subscription]:
        return [one for one in self._subscriptions if one.key not in session.acknowledged]

    async def _serve(self, session: Session) -> None:
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

    async def _until_due(self, session: Session) -> None:
        """Wait for the session's end, a new token, or the time to replace it. Raises what ended the asking."""
        keeper = session.keeper
        asking = [keeper] if keeper is not None and not keeper.done() else []
        left = max(0.0, self._due(session) - boottime())
        await _first(asking, session.connection.closed(), self._wake.wait(), seconds=left)
        self._wake.clear()
        if keeper is not None and keeper.done() and not keeper.cancelled():
            keeper.result()

    def _stale(self, session: Session) -> bool:
        # Also if there is none at the moment: then the newest was refused, and a fresh one is to be had.
        return self._around.tokens.current != session.connection.token

    def _due(self, session: Session) -> float:
        """Boottime at which this session needs a successor."""
        if self._stale(session):
            return self._retry_at
        return max(session.connection.last_frame_at + self._around.silence_seconds, self._retry_at)

    def _say_silent(self, session: Session) -> None:
        seconds = round(boottime() - session.connection.last_frame_at)
        detail = self._detail(connection=session.connection.id, reason=f"no data for {seconds} s; renewing")
        self._around.record(Fact("silent", wall_us(), detail))

    async def _succeed(self, old: Session) -> Session | None:
        """Connect and subscribe anew first, then close the old: nothing is missed, and what comes twice is known.

        Returns the session that counts from now on: the old one if there is no other, None if that has ended as well.
        """
        attempt = asyncio.create_task(self._prepare(), name="successor")
        try:
            await _first([attempt], old.connection.closed())
            if not old.connection.alive:
                await self._lost(old)  # told at once, not when the attempt is over
            new = await attempt
        except (ConnectionFailed, TokenRefused, TokenUnavailable) as error:
            self._put_off(error)
            return old if self._session is old else None
        finally:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
        await self._hand_over(old, new)
        return new

    async def _prepare(self) -> Session:
        """A session that has been answered, while the other one still counts."""
        session = self._begin(await self._open())
        await _first([], session.settled.wait(), session.connection.closed())
        if not session.connection.alive:
            await self._retire(session)
            raise ConnectionFailed("the successor did not last")
        return session

    async def _hand_over(self, old: Session, new: Session) -> None:
        self._retry_at = 0.0
        self._failures = 0
        if old in self._sessions:
            self._take_over(old, new)
        self._install(new)
        if old in self._sessions:
            await self._retire(old, "renewed", "its successor has taken over")

    def _put_off(self, error: IngestorError) -> None:
        wait = self._next_wait()
        self._retry_at = boottime() + wait
        detail = self._detail(reason=outside(error), attempt=self._failures, retry_in_seconds=round(wait, 1))
        self._last_error = outside(error)
        self._around.record(Fact("connect_failed", wall_us(), detail))

    async def _lost(self, session: Session) -> None:
        """State why and since when nothing is heard, and clear up. Raises what the sink raised, if that was the end."""
        connection = session.connection
        self._publish()
        self._session = None
        self._since_us = wall_us()
        try:
            ended = await connection.closed()
        finally:
            await self._retire(session)
        self._count(connection, ended)
        detail = self._detail(connection=connection.id, cause=ended.cause, reason=ended.reason)
        state: State = "spool_full" if ended.cause == "spool_full" else "disconnected"
        self._around.coverage.change("disconnected", state, self.keys, detail, connection.last_heard_us)

    def _count(self, connection: Connection, ended: Ended) -> None:
        lived = boottime() - connection.opened_at if connection.opened_at is not None else 0.0
        self._failures = 1 if lived > HEALTHY_SECONDS else self._failures + 1
        self._reconnects[ended.cause] += 1
        self._last_error = ended.reason

    async def _retire(self, session: Session, cause: str = "lost", reason: str = "cleared up") -> None:
        await session.close(cause, reason)
        if session in self._sessions:
            self._sessions.discard(session)
            self._frames += session.connection.frames
            self._last_frame_us = session.connection.last_frame_us or self._last_frame_us

    async def _stop(self) -> None:
        heard = self._session.connection if self._session and self.connected else None
        self._publish()
        self._session = None
        for session in list(self._sessions):
            await self._retire(session, "stopped", "stopped by us")
        self._complaints.flush()
        since = heard.last_heard_us if heard else None
        self._around.coverage.change("stopped", "stopped", self.keys, self._detail(reason="stopped by us"), since)

    # --- states ---

    def _answers_came(self, session: Session) -> None:
        if session is self._session and self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._publish)

    def _cancel_flush(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None

    def _publish(self) -> None:
        """Turn the answers so far into states: one fact for all that were acknowledged, one for each reason why not."""
        self._cancel_flush()
        if self._session is None:
            return
        session, coverage = self._session, self._around.coverage
        detail = self._detail(connection=session.connection.id)
        waiting = [key for key in self.keys if key not in session.acknowledged and key not in session.refused]
        asked = [key for key in waiting if (at := coverage[key]) is None or at.state not in ("live", "pending")]
        if asked:
            coverage.change("pending", "pending", asked, {**detail, "reason": "asked, not yet acknowledged"})
        live = set(coverage.are("live", session.acknowledged))
        live.update(self._doubted(session))
        fresh = {key: at for key, at in session.acknowledged.items() if key not in live}
        if fresh:
            # From the last of them on: a state may be claimed late, never early.
            coverage.change("subscribed", "live", fresh, {**detail, "count": len(fresh)}, max(fresh.values()))
        for reason, keys in _by_reason(session.refused).items():
            refused = [key for key in keys if (at := coverage[key]) is None or at.state != "refused"]
            if refused:
                coverage.change("refused", "refused", refused, {**detail, "reason": reason})

    def _doubted(self, session: Session) -> tuple[SubscriptionKey, ...]:
        return self._doubt.keys if self._doubt and self._doubt.session is session else ()

    def _listen_again(self, doubt: Doubt) -> None:
        """End the doubt when something was heard; a connection that ends, or has a successor, ends it as well."""
        connection = doubt.session.connection
        if self._doubt is not doubt:
            return
        if doubt.session is not self._session or not connection.alive:
            self._doubt = None
        elif connection.last_heard_at <= doubt.since.boottime:
            asyncio.get_running_loop().call_later(DOUBT_SECONDS, self._listen_again, doubt)
        else:
            self._doubt = None
            if silent := self._around.coverage.are("silent", doubt.keys):
                detail = self._detail(connection=connection.id)
                self._around.coverage.change("heard_again", "live", silent, detail, doubt.since.wall_us)
            self._publish()

    def _take_over(self, old: Session, new: Session) -> None:
        """What the old connection listened to and the new one does not was live until the old was last heard."""
        for reason, keys in _by_reason(new.refused).items():
            if lost := self._around.coverage.are("live", keys):
                detail = self._detail(connection=new.connection.id, reason=reason)
                self._around.coverage.change("refused", "refused", lost, detail, old.connection.last_heard_us)

    def _detail(self, **more: object) -> dict[str, Any]:
        return {"path": self._line.path, **more}

    def _record(self, fact: Fact) -> None:
        """What connections report."""
        if fact.kind != "provider_error":
            self._around.record(fact)
            return
        self._around.complaints[fact.detail["event"]] += 1
        self._last_error = fact.detail["text"]
        self._complaints.tell(fact)


async def _first(tasks: list[asyncio.Task[Any]], *more: Coroutine[Any, Any, Any], seconds: float | None = None) -> None:
    """Wait for one of them. ``tasks`` go on, the coroutines are ended; their outcomes are for others to look at."""
    own = [asyncio.ensure_future(one) for one in more]
    try:
        await asyncio.wait([*tasks, *own], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in own:
            one.cancel()
        await asyncio.gather(*own, return_exceptions=True)


def _by_reason(refused: Mapping[SubscriptionKey, str]) -> dict[str, list[SubscriptionKey]]:
    reasons: dict[str, list[SubscriptionKey]] = {}
    for key, reason in refused.items():
        reasons.setdefault(reason, []).append(key)
    return reasons
