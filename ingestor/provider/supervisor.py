"""The set of connections that the config wants: one group for each path and its other params."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from ingestor.config.model import Provider, Subscription, canonical
from ingestor.errors import IngestorError
from ingestor.pipeline.entry import Fact, SubscriptionKey
from ingestor.provider.catalog import KEY_PARAMS
from ingestor.provider.client import known_release
from ingestor.provider.clock import boottime, wall_us
from ingestor.provider.connection import Line, Sink, outside
from ingestor.provider.coverage import Coverage, Standing
from ingestor.provider.dialect import Dialects, tls
from ingestor.provider.group import Group, Surroundings
from ingestor.provider.heard import Heard
from ingestor.provider.tally import GroupStatus
from ingestor.provider.token import Token, TokenSupply

LOOK_SECONDS = 5.0  # between looks who is silent; with a short ``silence`` more often
LOOKS = 20  # in one ``silence`` at least


class Mark(NamedTuple):
    """A moment, and what had been received by then."""

    at: float  # boottime
    seq: int


@dataclass(frozen=True, slots=True)
class Status:
    """The receive side as status and metrics show it."""

    groups: tuple[GroupStatus, ...]
    subscriptions: Mapping[SubscriptionKey, Standing]
    complaints: Mapping[str, int]  # errors that the provider reported, by event


def shared_params(subscription: Subscription) -> str:
    """The params that a connection's subscriptions have in common, canonical JSON: those that rows do not name."""
    rest = {name: value for name, value in subscription.params.items() if name not in KEY_PARAMS}
    return canonical(rest)


def grouped(subscriptions: Iterable[Subscription]) -> dict[tuple[str, str], tuple[Subscription, ...]]:
    """(path, shared params) → subscriptions. A bare list names neither, so a connection carries one of each only."""
    groups: dict[tuple[str, str], list[Subscription]] = {}
    for one in subscriptions:
        groups.setdefault((one.path, shared_params(one)), []).append(one)
    return {name: tuple(members) for name, members in groups.items()}


class Supervisor:
    """Keeps every subscription subscribed, and says in facts when one is not."""

    def __init__(
        self,
        provider: Provider,
        subscriptions: Iterable[Subscription],
        tokens: TokenSupply,
        sink: Sink,
        record: Callable[[Fact], object],
        heard: Heard,
    ) -> None:
        """Must be made inside the running loop. Reads the CA file."""
        self._heard = heard
        self._sink = sink
        self._look_seconds = min(LOOK_SECONDS, provider.silence / LOOKS)
        self._record = record
        self._tokens = tokens
        self._subscriptions = tuple(subscriptions)
        self._coverage = Coverage(record)
        self._complaints: Counter[str] = Counter()
        self._uncovered: frozenset[str] = frozenset()  # paths that were warned of
        self._tasks: list[asyncio.Task[None]] = []
        self._gate = asyncio.Event()
        self._gate.set()
        verification = tls(provider.ca_file) if urlsplit(provider.url).scheme == "https" else None
        around = Surroundings(
            tokens=tokens,
            dialects=Dialects(provider.url, provider.protocol, verification),
            sink=sink,
            coverage=self._coverage,
            record=record,
            complaints=self._complaints,
            renewal=provider.renewal,
            silence_seconds=provider.silence,
            gate=self._gate,
        )
        self._groups = [
            Group(
                Line(url=provider.url, path=path, params=params, events=provider.events, verification=verification),
                members,
                around,
            )
            for (path, params), members in grouped(self._subscriptions).items()
        ]
        heard.want(channel for group in self._groups for channel in group.channels)

    async def run(self) -> None:
        """Until ``stop`` or cancelled. Raises what the sink raised."""
        self._tokens.renewed.append(self._on_renewed)
        self._tokens.failed.append(self._on_token_failed)
        if not known_release():
            self._record(Fact("plain_client", wall_us(), {"reason": "an untested release of the Socket.IO library"}))
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = [tasks.create_task(group.run(), name="connection group") for group in self._groups]
                self._tasks.append(tasks.create_task(self._watch_silence(), name="silence"))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None  # the others fell with it
        finally:
            self._tokens.renewed.remove(self._on_renewed)
            self._tokens.failed.remove(self._on_token_failed)

    async def stop(self) -> None:
        """Close every connection; returns when the last fact is recorded, within some seconds."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def hang_up(self, reason: str) -> None:
        """The spool is full: close every connection, in state ``spool_full``, until ``resume``."""
        self._gate.clear()
        await asyncio.gather(*(group.hang_up(reason) for group in self._groups))

    def resume(self) -> None:
        """There is room again."""
        self._gate.set()

    def interrupt(self, kind: str, detail: dict[str, Any], from_us: int) -> None:
        """Nobody can vouch for the time from ``from_us`` (our wall clock) until now: what was live was silent.

        It is live again from now on, once its connection is heard. ``detail`` gives the ``reason``.
        """
        for group in self._groups:
            group.doubt()
        live = self._coverage.are("live", (one.key for one in self._subscriptions))
        self._coverage.change(kind, "silent", live, detail, from_us)

    def restate(self) -> None:
        """Say again which state every subscription is in: whoever reads the facts begins anew."""
        self._coverage.restate()

    def status(self) -> Status:
        """A snapshot."""
        standings = {one.key: self._coverage[one.key] for one in self._subscriptions}
        return Status(
            groups=tuple(group.status() for group in self._groups),
            subscriptions=MappingProxyType({key: at for key, at in standings.items() if at is not None}),
            complaints=MappingProxyType(dict(self._complaints)),
        )

    async def _watch_silence(self) -> None:
        mark = Mark(boottime(), self._sink.head)
        while True:
            await asyncio.sleep(self._look_seconds)
            upto_seq = self._heard.upto_seq  # before taking: what that seq says has been noted
            news = self._heard.take()
            for group in self._groups:
                group.hear(news)
            if upto_seq >= mark.seq:  # else what was received by then may be of anyone: nobody is called silent
                for group in self._groups:
                    group.judge(mark.at)
                mark = Mark(boottime(), self._sink.head)

    def _on_renewed(self, token: Token) -> None:
        self._record(Fact("token_renewed", wall_us(), {"life_seconds": round(token.life_seconds)}))
        self._say_uncovered(token)
        for group in self._groups:
            group.wake()

    def _say_uncovered(self, token: Token) -> None:
        paths = frozenset(one.path for one in self._subscriptions if not token.covers(one.path))
        if paths - self._uncovered:
            text = "the token's claims do not name these paths; they are asked for all the same"
            self._record(Fact("not_entitled", wall_us(), {"reason": text, "paths": sorted(paths)}))
        self._uncovered = paths

    def _on_token_failed(self, error: IngestorError, retry_in_seconds: float) -> None:
        detail: dict[str, Any] = {"reason": outside(error), "retry_in_seconds": round(retry_in_seconds, 1)}
        unheard = [key for group in self._groups if not group.connected for key in group.keys]
        self._coverage.change("token_failed", "token_failed", unheard, detail)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first
