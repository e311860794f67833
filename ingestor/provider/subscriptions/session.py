"""One connection of a group, and the subscribe requests on it: what to send, how it was answered, when to retry."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from ingestor.config.model import Subscription
from ingestor.core.backoff import Backoff, RetryTimer, chance
from ingestor.core.clock import boottime
from ingestor.core.entries import SubscriptionKey
from ingestor.provider.socket.connection import AckCallback, Connection

RESUBSCRIBE = Backoff(first_seconds=5.0, cap_seconds=3600.0)
MAX_QUOTED = 3  # different errors in one fact about many answers

Send: TypeAlias = Callable[[Iterable[Subscription], AckCallback], Awaitable[None]]


class SubscriptionSession:
    """Keeps subscriptions subscribed on one connection, and what the provider answered to each.

    ``on_answer`` is called after each answer, ``record_event`` with the kind and the detail of facts.
    """

    def __init__(
        self,
        connection: Connection,
        subscriptions: Mapping[SubscriptionKey, Subscription],
        on_answer: Callable[[SubscriptionSession], None],
        record_event: Callable[..., object],
    ) -> None:
        """Start subscribing at once."""
        self.connection = connection
        self.acknowledged: dict[SubscriptionKey, float] = {}  # when, seconds since boot
        self.refused: dict[SubscriptionKey, str] = {}  # why
        self.first_round_done = asyncio.Event()  # each initial subscription was answered, or not in time
        self.open_rounds = 0  # in which answers are still due
        self._subscriptions = dict(subscriptions)
        self._retries = {key: RetryTimer() for key in subscriptions}  # not acknowledged yet
        self._sent: set[SubscriptionKey] = set()
        self._to_resubscribe: list[Subscription] = []
        self._to_unsubscribe: list[Subscription] = []
        self._work_added = asyncio.Event()
        self._on_answer = on_answer
        self._record_event = record_event
        self.task = asyncio.create_task(self._run(), name=f"subscribing {connection.id}")

    def add(self, subscriptions: Iterable[Subscription]) -> None:
        """Subscribe to these too."""
        for subscription in subscriptions:
            self._subscriptions[subscription.key] = subscription
            self._retries[subscription.key] = RetryTimer()
        self._work_added.set()

    def remove(self, subscriptions: Iterable[Subscription]) -> None:
        """Stop subscribing to these, and unsubscribe those for which a subscribe was sent."""
        for subscription in subscriptions:
            key = subscription.key
            for memory in (self._subscriptions, self._retries, self.acknowledged, self.refused):
                memory.pop(key, None)
            if key in self._sent:
                self._sent.discard(key)
                self._to_unsubscribe.append(subscription)
        self._work_added.set()

    def resubscribe(self, subscriptions: Iterable[Subscription]) -> None:
        """Send a subscribe for acknowledged subscriptions again. They stay acknowledged, whatever the answer."""
        self._to_resubscribe += subscriptions
        self._work_added.set()

    async def close(self, cause: str, reason: str) -> None:
        """Stop subscribing and close the connection."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.connection.close(cause, reason)

    async def _run(self) -> None:
        """Subscribe to all and to later additions. Retry refused and unanswered subscriptions, backing off.

        Rounds run concurrently, so that one that waits for answers does not delay the next.
        """
        async with asyncio.TaskGroup() as rounds:
            rounds.create_task(self._subscribe_first(self._take_due()))
            while True:
                await self._wait_for_work()
                if self._to_unsubscribe:  # first, so that a subscription removed and added again ends up subscribed
                    unwanted, self._to_unsubscribe = self._to_unsubscribe, []
                    rounds.create_task(self._unsubscribe(unwanted))
                if due := self._take_due():
                    rounds.create_task(self._subscribe(due))
                if self._to_resubscribe:
                    silent, self._to_resubscribe = self._to_resubscribe, []
                    rounds.create_task(self._resubscribe(silent))

    async def _wait_for_work(self) -> None:
        """Wait until there is something to send: added by a call, or due for a retry."""
        next_boottime = min((retry.due_at for retry in self._retries.values()), default=math.inf)
        try:
            async with asyncio.timeout(max(0.0, next_boottime - boottime()) if next_boottime < math.inf else None):
                await self._work_added.wait()
        except TimeoutError:
            pass  # a retry is due
        self._work_added.clear()

    def _take_due(self) -> list[tuple[Subscription, RetryTimer]]:
        now = boottime()
        due = [(self._subscriptions[key], retry) for key, retry in self._retries.items() if retry.due_at <= now]
        for _, retry in due:
            retry.start()
        return due

    async def _subscribe_first(self, due: list[tuple[Subscription, RetryTimer]]) -> None:
        await self._subscribe(due)
        self.first_round_done.set()

    async def _subscribe(self, due: list[tuple[Subscription, RetryTimer]]) -> None:
        self.open_rounds += 1
        await self.connection.subscribe(self._still_due(due), self._note_answer)
        self.open_rounds -= 1
        self._on_answer(self)
        self._work_added.set()  # recompute the next retry once for the round, not for each of a thousand answers

    def _still_due(self, due: list[tuple[Subscription, RetryTimer]]) -> Iterator[Subscription]:
        """Yield each subscription if it is still wanted at its turn: the number of subscribes in flight is limited."""
        for subscription, retry in due:
            if self._retries.get(subscription.key) is retry:
                self._sent.add(subscription.key)
                yield subscription

    def _note_answer(self, subscription: Subscription, error: str | None) -> None:
        """Note an answer, or its absence. An acknowledged subscription stays so as long as the connection lasts."""
        key = subscription.key
        if self._subscriptions.get(key) is not subscription:
            return  # removed meanwhile
        if error is None:
            self.acknowledged[key] = boottime()
            self.refused.pop(key, None)
            self._retries.pop(key, None)
        elif key not in self.acknowledged:  # else the answer to a retry that was sent before the first answer arrived
            self.refused[key] = error
            self._retries[key].schedule_retry(RESUBSCRIBE, boottime(), chance())
        self._on_answer(self)

    async def _unsubscribe(self, unwanted: list[Subscription]) -> None:
        # A subscription that was added again and sent before its turn must not be unsubscribed.
        still_unwanted = (subscription for subscription in unwanted if subscription.key not in self._sent)
        await self._send("unsubscribed", self.connection.unsubscribe, still_unwanted)

    async def _resubscribe(self, silent: list[Subscription]) -> None:
        # A subscription that was removed before its turn must not be subscribed again.
        still_subscribed = (subscription for subscription in silent if subscription.key in self._sent)
        await self._send("asked_again", self.connection.resubscribe, still_subscribed)

    async def _send(self, kind: str, send: Send, subscriptions: Iterable[Subscription]) -> None:
        """Send requests and record one fact for all, with the errors among the answers."""
        errors: dict[SubscriptionKey, str | None] = {}

        def note_answer(subscription: Subscription, error: str | None) -> None:
            errors[subscription.key] = error

        await send(subscriptions, note_answer)
        if self.connection.alive and errors:
            most_common = Counter(error for error in errors.values() if error is not None).most_common(MAX_QUOTED)
            detail = {"refused": dict(most_common)} if most_common else {}
            self._record_event(kind, connection=self.connection.id, count=len(errors), **detail)
