"""Real Node servers of every generation: connect, subscribe, receive, for longer than two ping windows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from ingestor.config.model import Provider, Subscription
from ingestor.provider.heard import Heard
from ingestor.provider.supervisor import Supervisor
from ingestor.provider.token import TokenSupply

from ...support.peer import Peer
from .raw import Memory

pytestmark = pytest.mark.node
PATH = "/real-time/crowd-sentiment"
SUBSCRIPTIONS = [Subscription(PATH, "get", {"ticker": ticker}) for ticker in ("AAPL", "TSLA", "ON")]
GENERATIONS = [("1", "3"), ("2", "3"), ("4", "4")]  # Socket.IO's, Engine.IO's
Run = Callable[..., Awaitable[Supervisor]]


@dataclass(frozen=True)
class Behind:
    """The peer as it is seen through a proxy."""

    url: str
    api_key: str


@pytest.fixture
async def run_against(scheduler: Any, memory: Memory) -> AsyncIterator[Run]:
    """`await run_against(peer)`: a supervisor, running; its facts and frames are in ``memory``."""
    started: list[tuple[Supervisor, TokenSupply, asyncio.Task[None]]] = []

    async def run(peer: Peer | Behind, **settings: Any) -> Supervisor:
        provider = Provider.model_validate({"url": peer.url, **settings})
        tokens = TokenSupply(f"{peer.url}/jwt", SecretStr(peer.api_key), provider.token, scheduler, spacing_seconds=0.2)
        supervisor = Supervisor(provider, SUBSCRIPTIONS, tokens, memory, memory.append, Heard())
        started.append((supervisor, tokens, asyncio.create_task(supervisor.run())))
        return supervisor

    yield run
    for supervisor, tokens, task in started:
        await supervisor.stop()
        await task
        await tokens.close()


def live(memory: Memory) -> int:
    return sum(len(fact.subscriptions) for fact in memory.facts("subscribed"))


def rows_of(memory: Memory) -> list[Any]:
    return [json.loads(text[2:])[1] for text in memory.texts]


@pytest.mark.parametrize(("generation", "dialect"), GENERATIONS)
async def test_every_frame_arrives_once_and_in_order_for_longer_than_two_ping_windows(
    memory: Memory, socketio_peer: Any, run_against: Run, generation: str, dialect: str
) -> None:
    peer = await socketio_peer(generation, ping_interval_seconds=0.6, ping_timeout_seconds=0.4)
    supervisor = await run_against(peer)
    await memory.until(lambda: live(memory) == 3)
    await asyncio.sleep(2.6)
    await supervisor.stop()
    (group,) = supervisor.status().groups
    assert memory.facts("disconnected", "connect_failed") == []
    assert memory.facts("connected")[0].detail["dialect"] == dialect
    assert group.frames == len(memory.frames) > 60
    received = rows_of(memory)
    # What was on its way when we closed was not received: the rest, in the order in which it was sent.
    assert received == [emission.rows for emission in peer.emitted][: len(received)]
    assert len(peer.emitted) - len(received) < 10


@pytest.mark.parametrize(("generation", "dialect"), GENERATIONS)
async def test_a_refused_token_is_replaced_and_the_connection_made(
    memory: Memory, socketio_peer: Any, run_against: Run, generation: str, dialect: str
) -> None:
    peer = await socketio_peer(generation, lifetime_seconds=3600)
    supervisor = await run_against(peer, protocol=dialect)
    await memory.until(lambda: live(memory) == 3)
    await peer.do("revoke")
    await peer.do("kick")
    await memory.until(lambda: live(memory) == 6, seconds=25)
    assert any("refused" in fact.detail["reason"] for fact in memory.facts("connect_failed"))
    assert peer.count("login") == 2
    assert supervisor.status().groups[0].reconnects == {"kicked": 1}


@pytest.mark.parametrize(("generation", "dialect"), GENERATIONS)
@pytest.mark.parametrize("how", ["kick", "close", "reset"])
async def test_every_end_is_followed_by_a_new_connection(
    memory: Memory, socketio_peer: Any, run_against: Run, generation: str, dialect: str, how: str
) -> None:
    peer = await socketio_peer(generation)
    await run_against(peer, protocol=dialect)
    await memory.until(lambda: live(memory) == 3)
    await peer.do(how)
    await memory.until(lambda: live(memory) == 6)
    assert len(memory.facts("disconnected")) == 1


@pytest.mark.parametrize(("generation", "dialect"), GENERATIONS)
async def test_a_refused_subscription_does_not_concern_the_others(
    memory: Memory, socketio_peer: Any, run_against: Run, generation: str, dialect: str
) -> None:
    peer = await socketio_peer(generation)
    await peer.do("refuse", name="TSLA", message="not yours")
    await run_against(peer, protocol=dialect)
    await memory.until(lambda: live(memory) == 2 and memory.facts("refused"))
    (refused,) = memory.facts("refused")
    assert "not yours" in refused.detail["reason"]
    assert [key[2] for key in refused.subscriptions] == ['{"ticker":"TSLA"}']


@pytest.mark.parametrize(("generation", "dialect"), GENERATIONS)
async def test_an_event_that_wants_an_acknowledgement_gets_one(
    memory: Memory, socketio_peer: Any, run_against: Run, generation: str, dialect: str
) -> None:
    peer = await socketio_peer(generation, interval_seconds=None)
    await run_against(peer, protocol=dialect)
    await memory.until(lambda: live(memory) == 3)
    await peer.do("ask")
    await peer.until(lambda: peer.count("acknowledged"))


@pytest.mark.parametrize(("generation", "dialect"), GENERATIONS)
async def test_a_silent_server_is_noticed_within_the_ping_window(
    memory: Memory, socketio_peer: Any, run_against: Run, tcp_proxy: Any, generation: str, dialect: str
) -> None:
    peer = await socketio_peer(generation, ping_interval_seconds=0.6, ping_timeout_seconds=0.4)
    proxy = await tcp_proxy(peer.url)
    supervisor = await run_against(Behind(proxy.url, peer.api_key), protocol=dialect)
    await memory.until(lambda: live(memory) == 3)
    proxy.half_open = True
    silent_from = asyncio.get_running_loop().time()
    await memory.until(lambda: memory.facts("disconnected"))
    assert asyncio.get_running_loop().time() - silent_from < 1.6
    assert supervisor.status().groups[0].reconnects == {"mute": 1}
