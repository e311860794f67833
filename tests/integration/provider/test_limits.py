"""What a provider can take from the daemon: every queue has a bound, beyond which the connection is cut by name."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from socketio.packet import Packet

from ingestor.config.model import Subscription
from ingestor.errors import ConnectionFailed
from ingestor.provider.auth import Token
from ingestor.provider.socket import engineio_client as client_module
from ingestor.provider.socket.connection import Connection
from ingestor.provider.socket.protocol import ProtocolVersion

from .raw_engineio_server import ClientSocket, Memory, RawServer

Make = Callable[..., Connection]
Serve = Callable[..., Awaitable[RawServer]]
AAPL = Subscription("/real-time/crowd-sentiment", "get", {"ticker": "AAPL"})
FIRST = '42["res",1]'
PLACEHOLDER = '{"_placeholder":true,"num":0}'


async def closed(connection: Connection) -> str:
    """Wait until the connection is cut for a limit, and return the reason."""
    reason = await asyncio.wait_for(connection.wait_closed(), 10)
    assert reason.cause == "limit"
    return reason.reason


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("2" + "x" * 2000, id="pings"),
        pytest.param("2" + "x" * (2 << 20), id="long pings"),
        pytest.param('42/namespace-of-the-provider,7["other",1]', id="events that want an acknowledgement"),
    ],
)
async def test_provider_that_does_not_read_is_cut(
    raw_server: Serve, make_connection: Make, token: Token, memory: Memory, message: str
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.send(FIRST)
        client.request.transport.pause_reading()  # type: ignore[union-attr]
        while not client.closed.is_set():
            await client.send(message)

    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    talking = asyncio.create_task(talk(server.clients[0]))
    engine = connection._client.engine  # type: ignore[union-attr]
    assert "does not read" in await closed(connection)
    talking.cancel()
    assert engine.queue.unsent_bytes < 2 * client_module.MAX_UNSENT_BYTES + len(message)
    assert memory.texts[0] == FIRST


@pytest.mark.parametrize(
    ("constant", "value", "messages", "reason"),
    [
        pytest.param("MAX_ATTACHMENTS", 1000, ['451234567-["res",1]'], "announces 1234567 attachments", id="number"),
        pytest.param(
            "MAX_ATTACHED_BYTES", 3000, [f'453-["res",{PLACEHOLDER}]', *[b"x" * 1100] * 3], "than 3000 bytes", id="size"
        ),
        pytest.param(
            "MAX_ATTACHED_BYTES",
            3000,
            [f'451-["res",{",".join([PLACEHOLDER] * 30)}]', b"x" * 1100],
            "than 3000 bytes",
            id="one attachment many times",
        ),
        pytest.param("ATTACHMENT_SECONDS", 0.05, [f'452-["res",{PLACEHOLDER}]', b"x"], "within 0.05 s", id="time"),
        pytest.param(
            "MAX_NAMESPACE_CHARACTERS", 50, [f'42/{"x" * 60},7["res",1]'], "namespace of 61 characters", id="namespace"
        ),
    ],
)
async def test_message_beyond_a_limit_is_cut(
    raw_server: Serve,
    make_connection: Make,
    token: Token,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    value: float,
    messages: list[str | bytes],
    reason: str,
) -> None:
    monkeypatch.setattr(client_module, constant, value)
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    await server.clients[0].send(FIRST, *messages)
    assert reason in await closed(connection)
    assert len(memory.texts) == 2, "the message is kept, without its attachments"
    assert memory.texts[0] == FIRST


async def test_attachments_of_a_message_are_released_once_it_is_stored(
    raw_server: Serve, make_connection: Make, token: Token, memory: Memory
) -> None:
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    for _ in range(3):
        await server.clients[0].send(f'451-["res",{PLACEHOLDER}]', b"x" * 1000)
    await memory.until(lambda: len(memory.texts) == 3)
    gc.collect()
    kept = [found for found in gc.get_objects() if isinstance(found, Packet) and found.attachments]
    assert kept == []


@pytest.mark.parametrize(
    ("generation", "value"),
    # The client of generation 3 sends the pings.
    [("4", -25_000), ("4", 10**9), ("3", 0), ("3", -5), ("3", 1), ("3", 10**9), pytest.param("4", 10**400, id="huge")],
)
async def test_unusable_ping_interval_fails_the_handshake(
    raw_server: Serve, make_connection: Make, token: Token, generation: str, value: int
) -> None:
    server = await raw_server(generation=generation)
    server._open = json.dumps({"sid": "raw", "upgrades": [], "pingInterval": value, "pingTimeout": 20_000})
    with pytest.raises(ConnectionFailed, match=r"ping interval|not an Engine\.IO handshake"):
        await make_connection(server.url, ProtocolVersion(generation)).open(token)


async def test_ack_of_nothing_does_not_stop_subscribing(
    raw_server: Serve, make_connection: Make, token: Token, memory: Memory
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.until(lambda: client.requests("subscribe"))
        await client.send("430[]", "43[]", "4399[]", FIRST)
        await client.acknowledge(2)

    server = await raw_server(talk)
    connection, answers = make_connection(server.url), list[str | None]()
    await connection.open(token)
    first = asyncio.create_task(connection.subscribe([AAPL], lambda _, error: answers.append(error)))
    await memory.until(lambda: memory.frames)
    await connection.subscribe([AAPL], lambda _, error: answers.append(error))
    await first
    assert answers == [None, None]


async def test_callbacks_and_namespaces_are_bounded(
    raw_server: Serve, make_connection: Make, token: Token, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_CALLBACKS", 3)
    server = await raw_server(lambda client: client.send(*(f'40/{n},{{"sid":"{n}"}}' for n in range(50)), FIRST))
    connection = make_connection(server.url)
    await connection.open(token)
    await memory.until(lambda: memory.frames)
    client: Any = connection._client.library  # type: ignore[union-attr]
    assert list(client.namespaces) == ["/"]
    for _ in range(9):
        await client.emit("subscribe", {}, callback=print)
    assert list(client.callbacks["/"]) == [7, 8, 9]


async def test_acks_that_wait_for_the_disk_share_one_task(
    raw_server: Serve, make_connection: Make, token: Token, memory: Memory
) -> None:
    memory.synced.clear()
    server = await raw_server(lambda client: client.send(*(f'42{number}["res",1]' for number in range(500))))
    connection = make_connection(server.url)
    await connection.open(token)
    before = len(asyncio.all_tasks())
    await memory.until(lambda: len(memory.frames) == 500)
    assert len(asyncio.all_tasks()) <= before + 1
    memory.synced.set()
    client = await server.client()
    await client.until(lambda: client.received[-1:] == ["43499[]"])
    assert client.received[-500:] == [f"43{number}[]" for number in range(500)]
