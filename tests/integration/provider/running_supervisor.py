"""A supervisor at work before any server, and what it has told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ingestor.config.model import ProviderConfig, Subscription
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from ingestor.provider.auth import TokenSource
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.supervisor import Supervisor
from ingestor.simulator import Simulator

from .raw_engineio_server import Memory

CROWD = "/real-time/crowd-sentiment"
AAPL = Subscription(CROWD, "get", {"ticker": "AAPL"})
TSLA = Subscription(CROWD, "get", {"ticker": "TSLA"})
BUZZ = Subscription("/real-time/tweet-buzz", "get", {"ticker": "AAPL"})
Run = Callable[..., Awaitable["Running"]]


class Running:
    """Starts at once. ``decodes``: what arrives is looked into, as the writer does; not while its database is away."""

    def __init__(
        self, provider: ProviderConfig, subscriptions: list[Subscription], tokens: TokenSource, memory: Memory
    ) -> None:
        self.tokens = tokens
        self.memory = memory
        self.decodes = True
        heard = ActivityTracker()
        self.supervisor = Supervisor(provider, subscriptions, tokens, memory, memory.append, heard)
        self.task = asyncio.create_task(self.supervisor.run())
        self._decoding = asyncio.create_task(self._decode(heard))

    def states(self, one: Subscription) -> list[str]:
        """Every state the subscription was in, in order."""
        return [str(fact.state) for fact in self.memory.facts() if fact.state and one.key in fact.subscriptions]

    def in_state(self, state: str, *subscriptions: Subscription) -> bool:
        return all(self.states(one)[-1:] == [state] for one in subscriptions)

    async def until(self, state: str, *subscriptions: Subscription) -> None:
        await self.memory.until(lambda: self.in_state(state, *subscriptions))

    async def stop(self) -> None:
        await self.supervisor.stop()
        await asyncio.gather(self.task, return_exceptions=True)
        self._decoding.cancel()
        await self.tokens.close()

    async def _decode(self, heard: ActivityTracker) -> None:
        decoder, position = Decoder(catalog.metrics_of, catalog.feed_name), 0
        while True:
            await asyncio.sleep(0.01)
            while self.decodes and position < len(self.memory.all):
                position += 1
                assembly = BatchBuilder(position, decoder)
                assembly.add((position, self.memory.all[position - 1]))
                heard.record(assembly.heard, position)


async def run_simulated(run: Run, simulator: Simulator, *subscriptions: Subscription, **settings: Any) -> Running:
    running = await run(simulator.url, simulator.api_key, list(subscriptions), **settings)
    await running.until("live", *subscriptions)
    return running
