"""One connection of a group, and the asking on it: for what, what was answered, and when again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ingestor.config.model import Subscription
from ingestor.pipeline.entry import SubscriptionKey
from ingestor.provider.backoff import Backoff, chance
from ingestor.provider.clock import wall_us
from ingestor.provider.connection import Connection

RESUBSCRIBE = Backoff(first_seconds=5.0, cap_seconds=3600.0)


class Session:
    """Its ``acknowledged`` and ``refused`` are what the provider said so far; ``changed`` is told of every answer."""

    def __init__(
        self,
        connection: Connection,
        wanted: Mapping[SubscriptionKey, Subscription],
        changed: Callable[[Session], None],
    ) -> None:
        """Begins to ask at once."""
        self.connection = connection
        self.acknowledged: dict[SubscriptionKey, int] = {}  # when, by our wall clock
        self.refused: dict[SubscriptionKey, str] = {}  # why
        self.settled = asyncio.Event()  # everything was asked for once, and answered or not in time
        self._wanted = dict(wanted)
        self._changed = changed
        self.keeper = asyncio.create_task(self._keep_subscribed(), name=f"subscribing {connection.id}")

    async def close(self, cause: str, reason: str) -> None:
        """End the connection and the asking."""
        self.keeper.cancel()
        await asyncio.wait([self.keeper])
        await self.connection.close(cause, reason)

    async def _keep_subscribed(self) -> None:
        """Ask for all; then, ever more rarely, again for those that were refused or not answered."""
        rounds = 0
        wanted = self._missing()
        while wanted:
            await self.connection.subscribe(wanted, self._answered)
            self.settled.set()
            rounds += 1
            wanted = self._missing()
            if wanted:
                await asyncio.sleep(RESUBSCRIBE.half_jitter(rounds, chance()))
                wanted = self._missing()  # some answers come late

    def _missing(self) -> list[Subscription]:
        return [one for one in self._wanted.values() if one.key not in self.acknowledged]

    def _answered(self, subscription: Subscription, error: str | None) -> None:
        """Note the provider's answer, or that there was none. What was acknowledged stays so while this lasts."""
        if error is None:
            self.acknowledged[subscription.key] = wall_us()
            self.refused.pop(subscription.key, None)
        elif subscription.key not in self.acknowledged:  # else it answers our asking again before the first answer came
            self.refused[subscription.key] = error
        self._changed(self)
