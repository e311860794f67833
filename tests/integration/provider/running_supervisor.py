"""A running supervisor, against whichever server, and the facts that it recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ingestor.config.model import ProviderConfig, Subscription
from ingestor.core.clock import ClockReading, Clocks, Interruption, read_clocks
from ingestor.core.permit import Permit
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from ingestor.provider.auth import TokenSource
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.supervisor import Supervisor
from tests.support.faulty_simulator import FaultySimulator

from .raw_engineio_server import Memory

CROWD = "/real-time/crowd-sentiment"
AAPL = Subscription(CROWD, "get", {"ticker": "AAPL"})
TSLA = Subscription(CROWD, "get", {"ticker": "TSLA"})
BUZZ = Subscription("/real-time/tweet-buzz", "get", {"ticker": "AAPL"})
StartSupervisor = Callable[..., Awaitable["RunningSupervisor"]]


class RunningSupervisor:
    """Starts at once. While ``decoding``, frames are decoded as the writer does; a database outage stops that."""

    def __init__(
        self,
        provider: ProviderConfig,
        subscriptions: list[Subscription],
        tokens: TokenSource,
        memory: Memory,
        permit: Permit | None = None,
    ) -> None:
        self.tokens = tokens
        self.memory = memory
        self.decoding = True
        activity = ActivityTracker()
        self.supervisor = Supervisor(
            provider, subscriptions, tokens, memory, memory.append, activity, Clocks(), permit=permit
        )
        self.task = asyncio.create_task(self.supervisor.run())
        self._decoder_task = asyncio.create_task(self._decode(activity))

    def states(self, subscription: Subscription) -> list[str]:
        """Every state the subscription was in, in order."""
        return [
            str(fact.state) for fact in self.memory.facts() if fact.state and subscription.key in fact.subscriptions
        ]

    def in_state(self, state: str, *subscriptions: Subscription) -> bool:
        return all(self.states(subscription)[-1:] == [state] for subscription in subscriptions)

    async def until(self, state: str, *subscriptions: Subscription) -> None:
        await self.memory.until(lambda: self.in_state(state, *subscriptions))

    def interrupt(self, before: ClockReading, step_seconds: float = 0.0) -> None:
        """Tell the supervisor that nothing ran since ``before``, or that the clock was set."""
        found = Interruption(0.0 if step_seconds else 1.0, step_seconds)
        for report in self.supervisor.clocks.on_interruption:
            report(found, before, read_clocks())

    async def stop(self) -> None:
        await self.supervisor.stop()
        await asyncio.gather(self.task, return_exceptions=True)
        self._decoder_task.cancel()
        await self.tokens.close()

    async def _decode(self, activity: ActivityTracker) -> None:
        decoder, position = Decoder(catalog.metrics_of, catalog.feed_name), 0
        while True:
            await asyncio.sleep(0.01)
            while self.decoding and position < len(self.memory.all):
                position += 1
                builder = BatchBuilder(position, decoder)
                builder.add((position, self.memory.all[position - 1]))
                activity.record(builder.last_received_us, position)


async def run_simulated(
    run: StartSupervisor, simulator: FaultySimulator, *subscriptions: Subscription, **settings: Any
) -> RunningSupervisor:
    running = await run(simulator.url, simulator.api_key, list(subscriptions), **settings)
    await running.until("live", *subscriptions)
    return running
