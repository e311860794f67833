"""The set of connections that the config wants: one group for each path and its other params."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

from pydantic import SecretStr

from ingestor.config.model import ProviderConfig, Subscription, canonical_json
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact, SubscriptionKey
from ingestor.errors import IngestorError
from ingestor.provider.auth import Token, TokenSource
from ingestor.provider.catalog import KEY_PARAMS
from ingestor.provider.socket.connection import ConnectionSettings, Sink, sanitize
from ingestor.provider.socket.protocol import ProtocolDetector
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.connection_group import ConnectionGroup, GroupContext
from ingestor.provider.subscriptions.counters import GroupStatus
from ingestor.provider.subscriptions.states import SubscriptionState, SubscriptionStates
from ingestor.provider.transport import make_tls_context

GroupKey: TypeAlias = tuple[str, str]  # of a group: its path and shared params
LOOK_SECONDS = 5.0  # between looks who is silent; with a short ``silence`` more often
LOOKS = 20  # in one ``silence`` at least


class ReadMark(NamedTuple):
    """A moment, and what had been received by then."""

    at: float  # boottime
    seq: int


@dataclass(frozen=True, slots=True)
class SupervisorStatus:
    """The receive side as status and metrics show it."""

    groups: tuple[GroupStatus, ...]
    subscriptions: Mapping[SubscriptionKey, SubscriptionState]
    provider_errors: Mapping[str, int]  # errors that the provider reported, by event


@dataclass(frozen=True, slots=True)
class SubscriptionDiff:
    """What became of the subscriptions by a change of the config."""

    added: tuple[Subscription, ...]
    removed: tuple[Subscription, ...]


def shared_params(subscription: Subscription) -> str:
    """The params that a connection's subscriptions have in common, canonical JSON: those that rows do not name."""
    rest = {name: value for name, value in subscription.params.items() if name not in KEY_PARAMS}
    return canonical_json(rest)


def group_subscriptions(subscriptions: Iterable[Subscription]) -> dict[GroupKey, tuple[Subscription, ...]]:
    """(path, shared params) → subscriptions. A bare list names neither, so a connection carries one of each only."""
    groups: dict[GroupKey, list[Subscription]] = {}
    for one in subscriptions:
        groups.setdefault((one.path, shared_params(one)), []).append(one)
    return {name: tuple(members) for name, members in groups.items()}


class Supervisor:
    """Keeps every subscription subscribed, and says in facts when one is not."""

    def __init__(
        self,
        provider: ProviderConfig,
        subscriptions: Iterable[Subscription],
        tokens: TokenSource,
        sink: Sink,
        record: Callable[[Fact], object],
        heard: ActivityTracker,
        proxy: SecretStr | None = None,
    ) -> None:
        """Must be made inside the running loop. Reads the CA file."""
        self._heard = heard
        self._sink = sink
        self._look_seconds = min(LOOK_SECONDS, provider.silence / LOOKS)
        self._record = record
        self._tokens = tokens
        self._subscriptions = tuple(subscriptions)
        self._coverage = SubscriptionStates(record)
        self._complaints: Counter[str] = Counter()
        self._uncovered: frozenset[str] = frozenset()  # paths that were warned of
        self._gate = asyncio.Event()
        self._gate.set()
        self._provider = provider
        self._proxy = proxy
        self._verification = make_tls_context(provider.ca_file) if urlsplit(provider.url).scheme == "https" else None
        self._around = GroupContext(
            tokens=tokens,
            protocol_detector=ProtocolDetector(provider.url, provider.protocol, self._verification, proxy),
            sink=sink,
            coverage=self._coverage,
            record=record,
            provider_errors=self._complaints,
            renewal=provider.renewal,
            silence_seconds=provider.silence,
            gate=self._gate,
        )
        self._groups = {
            name: self._group(name, members) for name, members in group_subscriptions(self._subscriptions).items()
        }
        self._tasks: dict[
            ConnectionGroup, asyncio.Task[None]
        ] = {}  # of those above, and of those that are being closed
        self._nursery: asyncio.TaskGroup | None = None  # while it runs
        self._listen()

    async def run(self) -> None:
        """Until ``stop`` or cancelled. Raises what the sink raised."""
        self._tokens.on_renewed.append(self._on_renewed)
        self._tokens.on_failed.append(self._on_token_failed)
        try:
            async with asyncio.TaskGroup() as self._nursery:
                self._watch = self._nursery.create_task(self._watch_silence(), name="silence")
                for group in self._groups.values():
                    self._start(group)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None  # the others fell with it
        finally:
            self._nursery = None
            self._tokens.on_renewed.remove(self._on_renewed)
            self._tokens.on_failed.remove(self._on_token_failed)

    async def stop(self) -> None:
        """Close every connection; returns when the last fact is recorded, within some seconds."""
        if self._nursery is None:
            return
        self._nursery = None  # nothing is started any more
        tasks = [self._watch, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def apply(self, subscriptions: Iterable[Subscription]) -> SubscriptionDiff:
        """Want these from now on. Only the difference is carried out: every connection that is still needed stays as it
        is, with one unsubscribe for each that is gone and one subscribe for each that is new.

        Returns at once; what comes of it is told in facts.
        """
        before, after = ({one.key: one for one in some} for some in (self._subscriptions, subscriptions))
        self._subscriptions = tuple(after.values())
        removed = tuple(one for key, one in before.items() if key not in after)
        added = tuple(one for key, one in after.items() if key not in before)
        gone, new = group_subscriptions(removed), group_subscriptions(added)
        for name in gone | new:
            self._change(name, gone.get(name, ()), new.get(name, ()))
        self._listen()
        if self._tokens.current is not None:
            self._say_uncovered(self._tokens.current)
        return SubscriptionDiff(added, removed)

    async def disconnect_all(self, reason: str) -> None:
        """The spool is full: close every connection, in state ``spool_full``, until ``resume``."""
        self._gate.clear()
        await asyncio.gather(*(group.disconnect_all(reason) for group in self._groups.values()))

    def resume(self) -> None:
        """There is room again."""
        self._gate.set()

    def record_interruption(self, kind: str, detail: dict[str, Any], from_us: int) -> None:
        """Nobody can vouch for the time from ``from_us`` (our wall clock) until now: what was live was silent.

        It is live again from now on, once its connection is heard. ``detail`` gives the ``reason``.
        """
        for group in self._groups.values():
            group.doubt()
        live = self._coverage.are("live", (one.key for one in self._subscriptions))
        self._coverage.change(kind, "silent", live, detail, from_us)

    def rerecord_states(self) -> None:
        """Say again which state every subscription is in: whoever reads the facts begins anew."""
        self._coverage.rerecord_states()

    def status(self) -> SupervisorStatus:
        """A snapshot."""
        standings = {one.key: self._coverage[one.key] for one in self._subscriptions}
        return SupervisorStatus(
            groups=tuple(group.status() for group in self._groups.values()),
            subscriptions=MappingProxyType({key: at for key, at in standings.items() if at is not None}),
            provider_errors=MappingProxyType(dict(self._complaints)),
        )

    def _group(self, name: GroupKey, members: tuple[Subscription, ...]) -> ConnectionGroup:
        (path, params), provider = name, self._provider
        line = ConnectionSettings(
            url=provider.url,
            path=path,
            params=params,
            events=provider.events,
            tls_context=self._verification,
            proxy=self._proxy,
        )
        return ConnectionGroup(line, members, self._around)

    def _start(self, group: ConnectionGroup) -> None:
        if self._nursery is not None:
            task = self._tasks[group] = self._nursery.create_task(group.run(), name="connection group")
            task.add_done_callback(lambda _: self._tasks.pop(group))

    def _change(self, name: GroupKey, removed: tuple[Subscription, ...], added: tuple[Subscription, ...]) -> None:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = self._group(name, added)
            self._start(group)
            return
        # What is gone first: to the tables, two that differ in their method only are one subscription.
        group.remove(removed)
        group.add(added)
        if not group.keys:
            del self._groups[name]
            if task := self._tasks.get(group):
                task.cancel()

    def _listen(self) -> None:
        self._heard.set_channels(channel for group in self._groups.values() for channel in group.channels)

    async def _watch_silence(self) -> None:
        mark = ReadMark(boottime(), self._sink.head)
        while True:
            await asyncio.sleep(self._look_seconds)
            upto_seq = self._heard.upto_seq  # before taking: what that seq says has been noted
            news = self._heard.take()
            for group in self._groups.values():
                group.hear(news)
            if upto_seq >= mark.seq:  # else what was received by then may be of anyone: nobody is called silent
                for group in self._groups.values():
                    group.judge(mark.at)
                mark = ReadMark(boottime(), self._sink.head)

    def _on_renewed(self, token: Token) -> None:
        self._record(Fact("token_renewed", wall_us(), {"life_seconds": round(token.life_seconds)}))
        self._say_uncovered(token)
        for group in self._groups.values():
            group.wake()

    def _say_uncovered(self, token: Token) -> None:
        paths = frozenset(one.path for one in self._subscriptions if not token.allows(one.path))
        if paths - self._uncovered:
            text = "the token's claims do not name these paths; they are asked for all the same"
            self._record(Fact("not_entitled", wall_us(), {"reason": text, "paths": sorted(paths)}))
        self._uncovered = paths

    def _on_token_failed(self, error: IngestorError, retry_in_seconds: float) -> None:
        detail: dict[str, Any] = {"reason": sanitize(error), "retry_in_seconds": round(retry_in_seconds, 1)}
        unheard = [key for group in self._groups.values() if not group.connected for key in group.keys]
        self._coverage.change("token_failed", "token_failed", unheard, detail)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first
