"""The simulator with Socket.IO 0.9 sends what its Node servers send, to a bare websocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from tests.support.faulty_simulator import FaultySimulator

from ..support.reference_clients import HandshakeRefused, SocketIo09Client, login

CROWD = "/real-time/crowd-sentiment"
SUBSCRIBE = json.dumps({"name": "subscribe", "args": [{"path": CROWD, "params": {"ticker": "AAPL"}}]})


@pytest.fixture
async def simulator(make_simulator: Callable[..., Any]) -> FaultySimulator:
    made: FaultySimulator = await make_simulator(protocol="0.9", interval_seconds=None)
    return made


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def connected(simulator: FaultySimulator) -> SocketIo09Client:
    return SocketIo09Client(simulator.url, await login(simulator.url, simulator.api_key))


async def shake_hands(session: aiohttp.ClientSession, simulator: FaultySimulator) -> str:
    """Return the answer to a handshake with a good token."""
    token = await login(simulator.url, simulator.api_key)
    async with session.get(f"{simulator.url}/socket.io/1/?token={token}&t=1") as response:
        return await response.text()


async def open_socket(
    session: aiohttp.ClientSession, simulator: FaultySimulator
) -> tuple[str, aiohttp.ClientWebSocketResponse[Any]]:
    sid = (await shake_hands(session, simulator)).split(":")[0]
    return sid, await session.ws_connect(f"{simulator.url}/socket.io/1/websocket/{sid}")


async def texts_until_end(socket: aiohttp.ClientWebSocketResponse[Any]) -> list[str]:
    """Return what arrives until the connection is cut, which has no close frame."""
    async with asyncio.timeout(5):
        texts = [message.data async for message in socket]
    assert socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    return texts


async def test_probe_is_answered_as_by_0_9(simulator: FaultySimulator, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{simulator.url}/socket.io/?EIO=4&transport=polling&token=any") as response:
        assert (response.status, await response.text()) == (200, "Welcome to socket.io.")


async def test_handshake_announces_timeouts_and_websocket_only(
    make_simulator: Callable[..., Any], session: aiohttp.ClientSession
) -> None:
    answer = await shake_hands(session, await make_simulator(protocol="0.9"))
    assert answer.split(":")[1:] == ["60", "60", "websocket"]


@pytest.mark.parametrize("token", ["", "a.b.c"])
async def test_handshake_without_valid_token_is_refused(simulator: FaultySimulator, token: str) -> None:
    with pytest.raises(HandshakeRefused, match=r"^403 handshake unauthorized$"):
        async with SocketIo09Client(simulator.url, token):
            pass
    assert simulator.handshakes == 0


async def test_subscribed_rows_arrive_as_emitted(simulator: FaultySimulator) -> None:
    async with await connected(simulator) as client:
        assert await client.request("subscribe", CROWD, ticker="AAPL") is None
        assert await client.request("subscribe", "crowd-sentiment", ticker="ON") is None
        for _ in range(5):
            await simulator.tick()
        await client.until(lambda: len(client.events) == len(simulator.emitted) == 12)
    for event in ("res", "data"):
        emitted = [row for emission in simulator.emitted if emission.event == event for row in emission.rows]
        assert client.rows(event) == emitted


async def test_refusal_has_reason_and_unsubscribe_ends_data(simulator: FaultySimulator) -> None:
    simulator.refuse("CLSD", "closed to you")
    refusal = {"type": "invalid_request_error", "message": "closed to you"}
    async with await connected(simulator) as client:
        assert await client.request("subscribe", CROWD, ticker="CLSD") == refusal
        await client.request("subscribe", CROWD, ticker="AAPL")
        assert await client.request("unsubscribe", CROWD, ticker="AAPL") is None
        assert simulator.subscriptions() == []


async def test_packet_without_plus_is_acknowledged_by_the_server_itself(
    simulator: FaultySimulator, session: aiohttp.ClientSession
) -> None:
    _, socket = await open_socket(session, simulator)
    for packet in ("8:7::", f"5:8::{SUBSCRIBE}", "5:9+::nonsense", "nonsense", f"5:10+::{SUBSCRIBE}"):
        await socket.send_str(packet)
    assert [(await socket.receive(5)).data for _ in range(4)] == ["1::", "6:::7", "6:::8", "6:::10+[null]"]


async def test_answered_heartbeats_keep_connection_and_unanswered_one_ends_it(
    make_simulator: Callable[..., Any],
) -> None:
    simulator = await make_simulator(protocol="0.9", ping_interval_seconds=0.2, ping_timeout_seconds=0.4)
    async with await connected(simulator) as client:
        await asyncio.sleep(1.5)
        assert client.end_reasons == []
        client.answers_heartbeats = False
        await client.until(lambda: client.end_reasons == [None])
    assert simulator.connections == []


async def test_kick_is_a_packet_and_the_end(simulator: FaultySimulator, session: aiohttp.ClientSession) -> None:
    _, socket = await open_socket(session, simulator)
    assert (await socket.receive(5)).data == "1::"
    await simulator.kick()
    assert await texts_until_end(socket) == ["0::"]
    assert simulator.connections == []


async def test_client_that_disconnects_is_forgotten(simulator: FaultySimulator, session: aiohttp.ClientSession) -> None:
    _, socket = await open_socket(session, simulator)
    await socket.send_str("0::")
    assert await texts_until_end(socket) == ["1::"]
    assert simulator.connections == []


async def test_close_frame_is_answered_by_the_end_only(
    simulator: FaultySimulator, session: aiohttp.ClientSession
) -> None:
    _, socket = await open_socket(session, simulator)
    await socket.receive(5)
    await socket.close()
    assert socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_session_id_serves_one_websocket(simulator: FaultySimulator, session: aiohttp.ClientSession) -> None:
    sid, first = await open_socket(session, simulator)
    assert (await first.receive(5)).data == "1::"
    for number in (sid, "unknown"):
        second = await session.ws_connect(f"{simulator.url}/socket.io/1/websocket/{number}")
        assert await texts_until_end(second) == ["7:::1+0"]
    assert simulator.connections == [sid]


async def test_stop_disconnects_clients_and_leaves_no_task_running() -> None:
    before = asyncio.all_tasks()
    simulator = FaultySimulator(seed=1, protocol="0.9")
    await simulator.start()
    async with await connected(simulator) as client:
        await simulator.stop()
        await client.until(lambda: client.end_reasons[:1] == ["server disconnect"])
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
