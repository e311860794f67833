"""The connections that the config needs: one group of subscriptions for each path and its shared params."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from ingestor.config.model import ProviderConfig, Subscription
from ingestor.core.clock import ClockReading, Clocks, Interruption, boottime, wall_us
from ingestor.core.entries import Fact, GroupKey, SubscriptionKey, connection_params
from ingestor.core.outage import Outage
from ingestor.core.permit import Permit
from ingestor.errors import IngestorError
from ingestor.provider.auth import Token, TokenSource
from ingestor.provider.socket.connection import ConnectionSettings, Sink, sanitize
from ingestor.provider.socket.protocol import ProtocolDetector
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.connect_gate import ConnectGate
from ingestor.provider.subscriptions.connection_group import ConnectionGroup, GroupContext
from ingestor.provider.subscriptions.counters import GroupStatus
from ingestor.provider.subscriptions.state_tracker import grouped_by_time
from ingestor.provider.subscriptions.states import SubscriptionState, SubscriptionStates
from ingestor.provider.transport import make_tls_context

SILENCE_CHECK_SECONDS = 5.0  # between two checks for silence
MIN_SILENCE_CHECKS = 20  # in provider.silence, if that is short


@dataclass(frozen=True, slots=True)
class SupervisorStatus:
    """The status of the receive side."""

    groups: tuple[GroupStatus, ...]
    subscriptions: Mapping[SubscriptionKey, SubscriptionState]
    provider_errors: Mapping[str, int]  # errors that the provider reported, by event


@dataclass(frozen=True, slots=True)
class SubscriptionDiff:
    """The subscriptions that a config change added and removed."""

    added: tuple[Subscription, ...]
    removed: tuple[Subscription, ...]


def shared_params(subscription: Subscription) -> str:
    """Return the params that a connection's subscriptions share, as canonical JSON: all that a row does not name."""
    return connection_params(subscription.key[2])


def group_subscriptions(subscriptions: Iterable[Subscription]) -> dict[GroupKey, tuple[Subscription, ...]]:
    """Group subscriptions by path and shared params.

    A connection carries one of each only, because a frame that is a bare list names neither.
    """
    groups: dict[GroupKey, list[Subscription]] = {}
    for subscription in subscriptions:
        groups.setdefault((subscription.path, shared_params(subscription)), []).append(subscription)
    return {group_key: tuple(members) for group_key, members in groups.items()}


class Supervisor:
    """Keeps every subscription subscribed, and records a fact when one is not."""

    def __init__(
        self,
        provider: ProviderConfig,
        subscriptions: Iterable[Subscription],
        tokens: TokenSource,
        sink: Sink,
        record: Callable[[Fact], object],
        activity: ActivityTracker,
        clocks: Clocks,
        proxy: SecretStr | None = None,
        permit: Permit | None = None,
    ) -> None:
        """Must be called inside the running loop. Reads the CA file. No connection is opened without the permit."""
        self._activity = activity
        self._silence_check_seconds = min(SILENCE_CHECK_SECONDS, provider.silence / MIN_SILENCE_CHECKS)
        self._tokens = tokens
        self._subscriptions = tuple(subscriptions)
        self._states = SubscriptionStates(record)
        self.clocks = clocks
        self.clocks.on_interruption.append(self._record_interruption)
        self._token_outage = Outage()
        self._reported_paths: frozenset[str] = frozenset()  # that the token does not allow
        tls_context = make_tls_context(provider.ca_file) if urlsplit(provider.url).scheme == "https" else None
        self._settings = partial(
            ConnectionSettings, url=provider.url, events=provider.events, tls_context=tls_context, proxy=proxy
        )
        self._context = GroupContext(
            tokens=tokens,
            protocol_detector=ProtocolDetector(provider.url, provider.protocol, tls_context, proxy),
            sink=sink,
            states=self._states,
            record=record,
            provider_errors=Counter(),
            provider=provider,
            gate=ConnectGate(permit or Permit()),
            clocks=self.clocks,
        )
        groups = group_subscriptions(self._subscriptions)
        self._groups = {group_key: self._make_group(group_key, members) for group_key, members in groups.items()}
        self._tasks: dict[ConnectionGroup, asyncio.Task[None]] = {}  # also of removed groups, while they close
        self._task_group: asyncio.TaskGroup | None = None  # while running
        self._update_channels()

    async def run(self) -> None:
        """Run until ``stop`` or cancelled. Raises what the sink raised."""
        self._tokens.on_renewed.append(self._on_renewed)
        self._tokens.on_failed.append(self._on_token_failed)
        try:
            async with asyncio.TaskGroup() as self._task_group:
                self._silence_task = self._task_group.create_task(self._watch_silence(), name="silence")
                for group in self._groups.values():
                    self._start(group)
        except BaseExceptionGroup as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None  # the others follow from it
        finally:
            self._task_group = None
            self._tokens.on_renewed.remove(self._on_renewed)
            self._tokens.on_failed.remove(self._on_token_failed)

    async def stop(self) -> None:
        """Close every connection. Returns when the last fact is recorded, within a few seconds."""
        if self._task_group is None:
            return
        self._task_group = None  # so that no group is started any more
        tasks = [self._silence_task, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def apply(self, subscriptions: Iterable[Subscription]) -> SubscriptionDiff:
        """Replace the subscriptions. Returns at once; facts report the outcome.

        Only the difference is sent: one unsubscribe for each that was removed, one subscribe for each that was added.
        Every connection that is still needed stays open.
        """
        before = {subscription.key: subscription for subscription in self._subscriptions}
        after = {subscription.key: subscription for subscription in subscriptions}
        self._subscriptions = tuple(after.values())
        removed = tuple(subscription for key, subscription in before.items() if key not in after)
        added = tuple(subscription for key, subscription in after.items() if key not in before)
        removed_by_group, added_by_group = group_subscriptions(removed), group_subscriptions(added)
        for group_key in removed_by_group | added_by_group:
            self._change_group(group_key, removed_by_group.get(group_key, ()), added_by_group.get(group_key, ()))
        self._update_channels()
        if self._tokens.current is not None:
            self._report_paths_not_allowed(self._tokens.current)
        return SubscriptionDiff(added, removed)

    async def disconnect_all(self, reason: str) -> None:
        """Close every connection, because the spool is full. None is opened until ``resume``."""
        self._context.gate.note_space(False)
        await asyncio.gather(*(group.disconnect_all("spool_full", reason) for group in self._groups.values()))

    def resume(self) -> None:
        """Connect again, because the spool has space."""
        self._context.gate.note_space(True)
        for group in self._groups.values():
            group.record_gate()

    @property
    def is_connected(self) -> bool:
        """Whether any connection is open."""
        return any(group.connection for group in self._groups.values())

    async def stand_by(self, detail: dict[str, Any]) -> None:
        """Close every connection, because another instance receives; ``detail`` says which, in its ``reason``.

        None is opened until the permit is held again and ``end_standby`` was called.
        """
        gate, groups = self._context.gate, self._groups.values()
        gate.standby_reason = detail["reason"]
        unconnected = [key for group in groups if not group.has_connections for key in group.keys]
        self._states.apply("standby", unconnected, detail, wall_us(), kind="standing_by")
        connected = [group for group in groups if group.has_connections]
        await asyncio.gather(*(group.disconnect_all("standby", gate.standby_reason) for group in connected))

    def end_standby(self) -> None:
        """Connect, and replace connections that are due, because the permit is held again."""
        self._context.gate.standby_reason = ""
        for group in self._groups.values():
            group.record_gate()  # the spool may be full
            group.wake_up.set()

    def _record_interruption(self, found: Interruption, before: ClockReading, now: ClockReading) -> None:
        """Record that data may have been missed between two readings of the clocks.

        Live subscriptions were silent from the last byte before it, and are live again as of now once their connection
        shows a sign of life. If the clock was set, every state goes on by the new one.
        """
        kind = "clock_stepped" if found.step_seconds else "stood_still"
        detail = {"reason": found.reason, "seconds": round(found.step_seconds or found.stall_seconds, 3)}
        since_us = {key: group.heard_us(before) for group in self._groups.values() for key in group.keys}
        live = {key: since_us[key] for key in self._states.in_state("live", since_us)}
        for group in self._groups.values():
            group.mark_unconfirmed(now)
        for at_us, keys in grouped_by_time(live, latest=False) or [(before.wall_us, [])]:
            self._states.apply("interrupted", keys, detail, now.wall_us, at_us, kind=kind)
        if found.step_seconds:
            until_us = before.wall_us_at(now.boottime)
            self._states.shift(now.wall_us - until_us)
            detail = {"reason": found.reason}
            self._context.record(Fact("clock_restarted", now.wall_us, detail, since_us=now.wall_us, until_us=until_us))

    def heard_us(self, now: ClockReading) -> dict[GroupKey, int]:
        """Return when the connection in use of each group was last heard, by the wall clock as it is set now."""
        return {key: group.heard_us(now) for key, group in self._groups.items() if group.tracker.session}

    def rerecord_states(self, complete_since_us: int | None = None) -> None:
        """Record the state of every subscription again, because a new instance begins without any.

        That has everything that was received since ``complete_since_us``; None: from now on.
        """
        self._states.record_all(wall_us(), complete_since_us)

    def status(self) -> SupervisorStatus:
        keys = [subscription.key for subscription in self._subscriptions]
        return SupervisorStatus(
            groups=tuple(group.status() for group in self._groups.values()),
            subscriptions={key: state for key in keys if (state := self._states[key])},
            provider_errors=dict(self._context.provider_errors),
        )

    # --- groups ---

    def _make_group(self, group_key: GroupKey, members: tuple[Subscription, ...]) -> ConnectionGroup:
        path, params = group_key
        return ConnectionGroup(self._settings(path=path, params=params), members, self._context)

    def _start(self, group: ConnectionGroup) -> None:
        if self._task_group is not None:
            task = self._tasks[group] = self._task_group.create_task(group.run(), name="connection group")
            task.add_done_callback(lambda _: self._tasks.pop(group))

    def _change_group(
        self, group_key: GroupKey, removed: tuple[Subscription, ...], added: tuple[Subscription, ...]
    ) -> None:
        group = self._groups.get(group_key)
        if group is None:
            group = self._groups[group_key] = self._make_group(group_key, added)
            self._start(group)
            return
        # First remove: subscriptions that differ only in their method are one subscription in the tables.
        group.remove(removed)
        group.add(added)
        if not group.keys:
            del self._groups[group_key]
            if task := self._tasks.get(group):
                task.cancel()

    # --- silence ---

    def _update_channels(self) -> None:
        trackers = [group.tracker for group in self._groups.values()]
        channels = chain.from_iterable(tracker.channels.values() for tracker in trackers)
        self._activity.set_channels(chain.from_iterable(channels))

    async def _watch_silence(self) -> None:
        mark_boottime, mark_seq = boottime(), self._context.sink.head
        while True:
            await asyncio.sleep(self._silence_check_seconds)
            upto_seq = self._activity.upto_seq  # read first: all activity up to that entry has been recorded
            activity = self._activity.take()
            for group in self._groups.values():
                group.tracker.note_activity(activity, self.clocks.read())
            if upto_seq >= mark_seq:  # otherwise what is still to be decoded may be data for any subscription
                for group in self._groups.values():
                    group.detect_silence(mark_boottime)
                mark_boottime, mark_seq = boottime(), self._context.sink.head

    # --- tokens ---

    def _on_renewed(self, token: Token) -> None:
        detail = {"life_seconds": round(token.life_seconds), **self._token_outage.end(boottime())}
        self._context.record(Fact("token_renewed", wall_us(), detail))
        self._report_paths_not_allowed(token)
        for group in self._groups.values():
            group.wake_up.set()

    def _report_paths_not_allowed(self, token: Token) -> None:
        subscriptions = self._subscriptions
        paths = frozenset(subscription.path for subscription in subscriptions if not token.allows(subscription.path))
        if paths - self._reported_paths:
            reason = "the token's claims do not include these paths; subscribing anyway"
            self._context.record(Fact("not_entitled", wall_us(), {"reason": reason, "paths": sorted(paths)}))
        self._reported_paths = paths

    def _on_token_failed(self, error: IngestorError, retry_in_seconds: float) -> None:
        reason = sanitize(error)
        is_news = self._token_outage.note_failure(reason, boottime())
        # One whose connection has just ended is recorded as disconnected first, as of the last byte.
        groups = self._groups.values() if self._context.gate.permitted else ()
        keys = [key for group in groups if not group.tracker.session for key in group.keys]
        if is_news or self._states.affected("token_failed", keys):
            attempts = {"failed_attempts": self._token_outage.attempts, "retry_in_seconds": round(retry_in_seconds, 1)}
            self._states.apply("token_failed", keys, {"reason": reason, **attempts}, wall_us())
