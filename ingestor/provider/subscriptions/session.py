"""One connection of a group, and the asking on it: for what, what was answered, and when again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Protocol

from ingestor.config.model import Subscription
from ingestor.core.backoff import Backoff, RetryTimer, chance
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import SubscriptionKey
from ingestor.provider.socket.connection import AckCallback, Connection

RESUBSCRIBE = Backoff(first_seconds=5.0, cap_seconds=3600.0)
QUOTED = 3  # different errors in one fact about many answers


class RecordFact(Protocol):
    """States a fact of the group."""

    def __call__(self, kind: str, **detail: object) -> None: ...


class SubscriptionSession:
    """Its ``acknowledged`` and ``refused`` are what the provider said so far; ``changed`` is told of every answer."""

    def __init__(
        self,
        connection: Connection,
        wanted: Mapping[SubscriptionKey, Subscription],
        changed: Callable[[SubscriptionSession], None],
        tell: RecordFact,
    ) -> None:
        """Begins to ask at once."""
        self.connection = connection
        self.acknowledged: dict[SubscriptionKey, int] = {}  # when, by our wall clock
        self.refused: dict[SubscriptionKey, str] = {}  # why
        self.settled = asyncio.Event()  # what was wanted at first was asked for, and answered or not in time
        self.rounds = 0  # of asking that are under way
        self._wanted = dict(wanted)
        self._turns = {key: RetryTimer() for key in wanted}  # of those that are not acknowledged
        self._asked: set[SubscriptionKey] = set()
        self._again: list[Subscription] = []
        self._unwanted: list[Subscription] = []
        self._news = asyncio.Event()  # there is something to ask
        self._changed = changed
        self._tell = tell
        self.keeper = asyncio.create_task(self._keep_asking(), name=f"subscribing {connection.id}")

    def add(self, subscriptions: Iterable[Subscription]) -> None:
        """Ask for these too."""
        for one in subscriptions:
            self._wanted[one.key] = one
            self._turns[one.key] = RetryTimer()
        self._news.set()

    def remove(self, subscriptions: Iterable[Subscription]) -> None:
        """Ask for these no more, and to be left alone where they were asked for."""
        for one in subscriptions:
            for memory in (self._wanted, self._turns, self.acknowledged, self.refused):
                memory.pop(one.key, None)
            if one.key in self._asked:
                self._asked.discard(one.key)
                self._unwanted.append(one)
        self._news.set()

    def ask_again(self, subscriptions: Iterable[Subscription]) -> None:
        """Ask once more for what is acknowledged, but silent. Whatever the answer is, it stays acknowledged."""
        self._again += subscriptions
        self._news.set()

    async def close(self, cause: str, reason: str) -> None:
        """End the connection and the asking."""
        self.keeper.cancel()
        await asyncio.wait([self.keeper])
        await self.connection.close(cause, reason)

    async def _keep_asking(self) -> None:
        """Ask for all; then for what is added, and ever more rarely for those that were refused or not answered.

        Each round goes its own way: one that waits for answers holds up no other.
        """
        async with asyncio.TaskGroup() as rounds:
            rounds.create_task(self._ask_first(self._due()))
            while True:
                await self._until_due()
                if self._unwanted:  # before anything else: what was removed and added again must end up subscribed
                    unwanted, self._unwanted = self._unwanted, []
                    rounds.create_task(self._leave(unwanted))
                if due := self._due():
                    rounds.create_task(self._ask(due))
                if self._again:
                    again, self._again = self._again, []
                    rounds.create_task(self._ask_once_more(again))

    async def _until_due(self) -> None:
        next_at = min((turn.due_at for turn in self._turns.values()), default=float("inf"))
        try:
            async with asyncio.timeout(max(0.0, next_at - boottime()) if next_at < float("inf") else None):
                await self._news.wait()
        except TimeoutError:
            pass  # somebody's turn has come
        self._news.clear()

    def _due(self) -> list[tuple[Subscription, RetryTimer]]:
        now = boottime()
        due = [(self._wanted[key], turn) for key, turn in self._turns.items() if turn.due_at <= now]
        for _, turn in due:
            turn.start()
        return due

    async def _ask_first(self, due: list[tuple[Subscription, RetryTimer]]) -> None:
        await self._ask(due)
        self.settled.set()

    async def _ask(self, due: list[tuple[Subscription, RetryTimer]]) -> None:
        self.rounds += 1
        await self.connection.subscribe(self._still_wanted(due), self._answered)
        self.rounds -= 1
        self._changed(self)
        self._news.set()  # now that all are answered, and not at each of a thousand answers: some may be due again

    def _still_wanted(self, due: list[tuple[Subscription, RetryTimer]]) -> Iterator[Subscription]:
        for one, turn in due:
            if self._turns.get(one.key) is turn:
                self._asked.add(one.key)
                yield one

    def _answered(self, subscription: Subscription, error: str | None) -> None:
        """Note the provider's answer, or that there was none. What was acknowledged stays so while this lasts."""
        key = subscription.key
        if self._wanted.get(key) is not subscription:
            return  # removed meanwhile
        if error is None:
            self.acknowledged[key] = wall_us()
            self.refused.pop(key, None)
            self._turns.pop(key, None)
        elif key not in self.acknowledged:  # else it answers our asking again before the first answer came
            self.refused[key] = error
            self._turns[key].schedule_retry(RESUBSCRIBE, boottime(), chance())
        self._changed(self)

    async def _ask_once_more(self, silent: list[Subscription]) -> None:
        await self._ask_and_tell("asked_again", self.connection.subscribe, silent)

    async def _leave(self, unwanted: list[Subscription]) -> None:
        # By its turn one may have been asked for anew: to say so now would end that.
        still = (one for one in unwanted if one.key not in self._asked)
        await self._ask_and_tell("unsubscribed", self.connection.unsubscribe, still)

    async def _ask_and_tell(
        self,
        kind: str,
        ask: Callable[[Iterable[Subscription], AckCallback], Awaitable[None]],
        subscriptions: Iterable[Subscription],
    ) -> None:
        """One fact for all that were asked, with what was said against it."""
        errors: dict[SubscriptionKey, str | None] = {}

        def answered(subscription: Subscription, error: str | None) -> None:
            errors[subscription.key] = error

        await ask(subscriptions, answered)
        if self.connection.alive and errors:
            quoted = dict(Counter(error for error in errors.values() if error is not None).most_common(QUOTED))
            detail = {"refused": quoted} if quoted else {}
            self._tell(kind, connection=self.connection.id, count=len(errors), **detail)
