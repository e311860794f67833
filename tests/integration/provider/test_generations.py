"""Real Node servers of every Socket.IO generation: the first and the last release of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from ingestor.config.model import ProviderConfig, Subscription
from ingestor.core.backoff import Backoff
from ingestor.core.clock import Clocks, boottime
from ingestor.errors import ConnectionRefused
from ingestor.provider.auth import Token, TokenSource, token_source
from ingestor.provider.socket import engineio_client, socketio_09_client
from ingestor.provider.socket.connection import Connection
from ingestor.provider.socket.protocol import ProtocolVersion
from ingestor.provider.subscriptions import connection_group, state_tracker
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.supervisor import Supervisor

from ...support.node_server import VERSIONS, NodeServer
from .raw_engineio_server import Memory

pytestmark = pytest.mark.node
PATH = "/real-time/crowd-sentiment"
STREAM = "crowd-sentiment"
SUBSCRIPTIONS = [Subscription(PATH, "get", {"ticker": ticker}) for ticker in ("AAPL", "TSLA", "ON")]
BOTH_SHAPES = [*SUBSCRIPTIONS[:2], Subscription(STREAM, "get", {"ticker": "AAPL"})]
DIFFERENT = ["0.9", "1.0", "2", "4"]  # where only the protocol matters: no Engine.IO, binary framing, Engine.IO 3 and 4
Run = Callable[..., Awaitable[Supervisor]]


def protocol_of(generation: str) -> ProtocolVersion:
    if generation < "1":
        return ProtocolVersion.SOCKET_IO_0
    return ProtocolVersion.SOCKET_IO_2 if generation < "3" else ProtocolVersion.SOCKET_IO_4


@dataclass(frozen=True)
class ProxiedServer:
    """The address of a server behind a proxy."""

    url: str
    api_key: str


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_group, "RECONNECT", Backoff(first_seconds=0.05, cap_seconds=0.2))
    monkeypatch.setattr(connection_group, "RECONNECT_AFTER_RESTART", Backoff(first_seconds=0.05, cap_seconds=0.2))
    monkeypatch.setattr(state_tracker, "PUBLISH_SECONDS", 0.02)
    monkeypatch.setattr(token_source, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.2))


@pytest.fixture
async def run_against(scheduler: Any, memory: Memory) -> AsyncIterator[Run]:
    """`await run_against(server)`: a running supervisor, whose facts and frames are in ``memory``."""
    started: list[tuple[Supervisor, TokenSource, asyncio.Task[None]]] = []

    async def run(
        server: NodeServer | ProxiedServer, subscriptions: list[Subscription] = SUBSCRIPTIONS, **settings: Any
    ) -> Supervisor:
        provider = ProviderConfig.model_validate({"url": server.url, **settings})
        key = SecretStr(server.api_key)
        tokens = TokenSource(f"{server.url}/jwt", key, provider.token, scheduler.at, spacing_seconds=0.2)
        supervisor = Supervisor(provider, subscriptions, tokens, memory, memory.append, ActivityTracker(), Clocks())
        started.append((supervisor, tokens, asyncio.create_task(supervisor.run())))
        return supervisor

    yield run
    for supervisor, tokens, task in started:
        await supervisor.stop()
        await task
        await tokens.close()


def live(memory: Memory) -> int:
    return sum(len(fact.subscriptions) for fact in memory.facts("subscribed"))


# --- every release ---


@pytest.mark.parametrize("generation", VERSIONS)
async def test_version_is_detected_and_both_shapes_are_received(
    memory: Memory, make_node_server: Any, run_against: Run, generation: str
) -> None:
    server = await make_node_server(generation, interval_seconds=None)
    supervisor = await run_against(server, BOTH_SHAPES)
    await memory.until(lambda: live(memory) == len(BOTH_SHAPES))
    for _ in range(5):
        await server.emit()  # afterwards everything that it sent is recorded
    await memory.until(lambda: len(memory.frames) == len(server.emitted))
    await supervisor.stop()
    assert {fact.detail["protocol_version"] for fact in memory.facts("connected")} == {protocol_of(generation).value}
    assert memory.facts("disconnected", "connect_failed", "refused", "provider_error") == []
    for path, event in ((PATH, "res"), (STREAM, "data")):
        texts = [frame.text for frame in memory.frames if (frame.path, frame.event) == (path, event)]
        rows = [emission.rows for emission in server.emitted if emission.path == path]
        assert len(texts) > 5
        assert [_rows(event, text) for text in texts] == rows


def _rows(event: str, text: str) -> Any:
    assert text.startswith(f'42["{event}",')
    payload = json.loads(text[2:])[1]
    return payload["results"] if event == "data" else payload


@pytest.mark.parametrize("generation", VERSIONS)
async def test_bad_token_is_refused_with_server_message(
    make_connection: Callable[..., Connection],
    make_node_server: Any,
    generation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engineio_client, "LATE_ERROR_SECONDS", 5.0)  # on a busy machine, it comes later
    server = await make_node_server(generation)
    bad = Token(value="e30.e30.e30", requested_at=boottime(), life_seconds=3600)
    reason = "handshake unauthorized" if generation < "1" else "invalid signature"
    with pytest.raises(ConnectionRefused, match=reason):
        await make_connection(server.url, protocol_of(generation)).open(bad)


@pytest.mark.parametrize("generation", VERSIONS)
async def test_disconnect_is_noticed_and_followed_by_reconnect(
    memory: Memory, make_node_server: Any, run_against: Run, generation: str
) -> None:
    server = await make_node_server(generation)
    supervisor = await run_against(server)
    await memory.until(lambda: live(memory) == 3)
    for ends, end in enumerate(("kick", "close", "reset"), start=1):
        await server.run_command(end)
        await memory.until(lambda: live(memory) == 3 + 3 * ends)  # noqa: B023 - is waited for here
    await server.stop()
    await server.start()
    await memory.until(lambda: live(memory) == 15)
    assert len(memory.facts("disconnected")) == 4
    # 0.x sends the same when it closes a connection.
    assert supervisor.status().groups[0].reconnects["kicked"] == (2 if generation < "1" else 1)
    assert server.count("login") == 1


# --- every protocol ---


@pytest.mark.parametrize("generation", DIFFERENT)
async def test_connection_lasts_longer_than_two_ping_windows(
    memory: Memory, make_node_server: Any, run_against: Run, generation: str
) -> None:
    server = await make_node_server(generation, ping_interval_seconds=0.5, ping_timeout_seconds=2)
    await run_against(server, protocol=protocol_of(generation).value)
    await memory.until(lambda: live(memory) == 3)
    await asyncio.sleep(5.5)
    assert memory.facts("disconnected", "connect_failed") == []
    assert server.count("disconnected") == 0


@pytest.mark.parametrize("generation", [*DIFFERENT, "2.0"])
async def test_refused_token_is_replaced(
    memory: Memory, make_node_server: Any, run_against: Run, generation: str
) -> None:
    server = await make_node_server(generation)
    supervisor = await run_against(server, protocol=protocol_of(generation).value)
    await memory.until(lambda: live(memory) == 3)
    await server.run_command("revoke")
    await server.run_command("kick")
    await memory.until(lambda: live(memory) == 6, seconds=25)
    assert any("refused" in fact.detail["reason"] for fact in memory.facts("connect_failed"))
    assert server.count("login") == 2
    assert supervisor.status().groups[0].reconnects == {"kicked": 1}


@pytest.mark.parametrize("generation", DIFFERENT)
async def test_refused_subscription_does_not_affect_others(
    memory: Memory, make_node_server: Any, run_against: Run, generation: str
) -> None:
    server = await make_node_server(generation)
    await server.run_command("refuse", name="TSLA", message="not yours")
    await run_against(server)
    await memory.until(lambda: live(memory) == 2 and memory.facts("refused"))
    (refused,) = memory.facts("refused")
    assert "not yours" in refused.detail["reason"]
    assert [key[2] for key in refused.subscriptions] == ['{"ticker":"TSLA"}']


@pytest.mark.parametrize("generation", DIFFERENT)
async def test_event_with_ack_id_is_acknowledged(
    memory: Memory, make_node_server: Any, run_against: Run, generation: str
) -> None:
    server = await make_node_server(generation, interval_seconds=None)
    await run_against(server)
    await memory.until(lambda: live(memory) == 3)
    await server.run_command("ask")
    await server.until(lambda: server.count("acknowledged"))


@pytest.mark.parametrize("generation", DIFFERENT)
async def test_silent_server_is_noticed_within_ping_window(
    memory: Memory,
    make_node_server: Any,
    run_against: Run,
    tcp_proxy: Any,
    generation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socketio_09_client, "SLACK_SECONDS", 1.0)
    server = await make_node_server(generation, ping_interval_seconds=0.6, ping_timeout_seconds=0.4)
    proxy = await tcp_proxy(server.url)
    supervisor = await run_against(ProxiedServer(proxy.url, server.api_key))
    await memory.until(lambda: live(memory) == 3)
    proxy.half_open = True
    silent_from = boottime()
    await memory.until(lambda: memory.facts("disconnected"))
    noticed_after = boottime() - silent_from
    print(f"noticed after {noticed_after:.2f} s")
    assert noticed_after < 0.6 + 0.4 + 3  # where the machine stands still for two seconds
    assert supervisor.status().groups[0].reconnects == {"mute": 1}
