"""Real socket.io servers of each generation do what the tests that stand on them believe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from ..support import node_server
from ..support.node_server import NodeServer
from ..support.reference_clients import EngineIo3Client, EngineIo4Client, HandshakeRefused, SocketIo09Client, login

Client = EngineIo4Client | EngineIo3Client | SocketIo09Client
CROWD = "/real-time/crowd-sentiment"

pytestmark = pytest.mark.node


@pytest.fixture(params=["0.9", "1", "2", "4"])
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def server(generation: str, make_node_server: Callable[..., Any]) -> NodeServer:
    made: NodeServer = await make_node_server(generation)
    return made


async def connected(server: NodeServer) -> Client:
    return client_of(server, await login(server.url, server.api_key))


def client_of(server: NodeServer, token: str) -> Client:
    kind = {"0": SocketIo09Client, "4": EngineIo4Client}.get(server.version[0], EngineIo3Client)
    return kind(server.url, token)


@pytest.mark.parametrize("generation", node_server.VERSIONS)
async def test_node_server_runs_the_requested_version(server: NodeServer, generation: str) -> None:
    assert [event["version"] for event in server.events if event["event"] == "listening"] == [
        node_server.VERSIONS[generation]
    ]


async def test_wrong_api_key_gets_no_token(server: NodeServer) -> None:
    with pytest.raises(aiohttp.ClientResponseError, match="401"):
        await login(server.url, "wrong")


@pytest.mark.parametrize(("token", "message"), [("", "no token given"), ("a.b.c", "invalid signature")])
async def test_handshake_without_valid_token_is_refused(server: NodeServer, token: str, message: str) -> None:
    with pytest.raises(HandshakeRefused) as refusal:
        async with client_of(server, token):
            pass
    # An object in 3.x/4.x, a string in 1.x/2.x, no reason in 0.x.
    told = {"0": "403 handshake unauthorized", "4": {"message": message}}.get(server.version[0], message)
    assert refusal.value.args[0] == told


async def test_revoked_token_is_refused(server: NodeServer) -> None:
    token = await login(server.url, server.api_key)
    await server.run_command("revoke")
    with pytest.raises(HandshakeRefused):
        async with client_of(server, token):
            pass


async def test_expired_token_is_refused(generation: str, make_node_server: Callable[..., Any]) -> None:
    server = await make_node_server(generation, lifetime_seconds=-1)
    with pytest.raises(HandshakeRefused, match="403" if generation == "0.9" else "jwt expired"):
        async with await connected(server):
            pass
    await server.until(lambda: "jwt expired" in [event.get("error") for event in server.events])


@pytest.mark.parametrize("generation", ["0.8", "0.9.16", "0.9", "1", "2", "4"])
async def test_subscribed_rows_arrive_as_emitted(server: NodeServer) -> None:
    async with await connected(server) as client:
        assert await client.request("subscribe", CROWD, ticker="AAPL") is None
        assert await client.request("subscribe", "crowd-sentiment", ticker="ON") is None
        await client.until(lambda: len(client.rows("res")) > 50 and len(client.rows("data")) > 50)

    def emitted(event: str) -> list[dict[str, Any]]:
        return [row for emission in server.emitted if emission.event == event for row in emission.rows]

    arrived = {event: client.rows(event) for event in ("res", "data")}
    # The server's report of an emission may come after its data.
    await server.until(lambda: all(len(emitted(event)) >= len(rows) for event, rows in arrived.items()))
    for event, rows in arrived.items():
        assert rows == emitted(event)[: len(rows)]


async def test_values_can_be_recomputed(server: NodeServer) -> None:
    async with await connected(server) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.rows("res"))
    first = client.rows("res")[0]
    minutes = (datetime.fromisoformat(first["ts"]) - node_server.START).total_seconds() / 60
    value = node_server.value(7, CROWD, "average_sentiment", "AAPL", int(minutes))
    assert first["average_sentiment"] == f"{value:.16f}"  # which is not every double to its last bit


async def test_refusal_has_reason_and_unsubscribe_ends_data(server: NodeServer) -> None:
    await server.run_command("refuse", name="CLSD", message="closed to you")
    async with await connected(server) as client:
        assert await client.request("subscribe", CROWD, ticker="CLSD") == {
            "type": "invalid_request_error",
            "message": "closed to you",
        }
        assert "No such endpoint" in (await client.request("subscribe", "/real-time/nonsense", ticker="A"))["message"]
        await client.request("subscribe", CROWD, ticker="AAPL")
        assert await client.request("unsubscribe", CROWD, ticker="AAPL") is None
        await server.emit()  # afterwards everything that it sent before is recorded
        seen = len(server.emitted)
        await server.emit()
        assert len(server.emitted) == seen


async def test_pings_keep_session_alive_and_its_end_is_reported(
    generation: str, make_node_server: Callable[..., Any]
) -> None:
    server = await make_node_server(generation, ping_interval_seconds=0.5, ping_timeout_seconds=2)
    async with await connected(server) as client:
        await asyncio.sleep(3)
        assert client.end_reasons == []
    await server.until(lambda: server.count("disconnected") == 1)


@pytest.mark.parametrize("generation", ["1", "2", "4"])
async def test_client_without_pings_is_disconnected(generation: str, make_node_server: Callable[..., Any]) -> None:
    server = await make_node_server(generation, ping_interval_seconds=0.3, ping_timeout_seconds=0.3)
    async with aiohttp.ClientSession() as session:
        token = await login(server.url, server.api_key)
        revision = 4 if generation == "4" else 3
        target = f"{server.url}/socket.io/?EIO={revision}&transport=websocket&token={token}"
        async with session.ws_connect(target) as socket:
            async with asyncio.timeout(5):
                while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            assert socket.closed


async def test_0_9_client_without_heartbeats_is_disconnected(make_node_server: Callable[..., Any]) -> None:
    server = await make_node_server("0.9", ping_interval_seconds=0.3, ping_timeout_seconds=0.3)
    async with await connected(server) as client:
        client.answers_heartbeats = False
        await client.until(lambda: client.end_reasons)
    await server.until(lambda: server.count("disconnected"))
    assert [event["reason"] for event in server.events if event["event"] == "disconnected"] == ["heartbeat timeout"]


@pytest.mark.parametrize(
    ("generation", "seconds"), [("0.8", ["15", "25"]), ("0.9.16", ["60", "60"]), ("0.9", ["60", "60"])]
)
async def test_0_9_server_announces_its_own_timeouts(server: NodeServer, generation: str, seconds: list[str]) -> None:
    async with await connected(server) as client:
        assert client.handshake[1:3] == seconds


@pytest.mark.parametrize(
    ("fault", "answer"),
    [("error", "500 handshake error"), (None, "403 handshake unauthorized")],
)
async def test_0_9_authorization_fails_on_demand(
    make_node_server: Callable[..., Any], fault: str | None, answer: str
) -> None:
    server = await make_node_server("0.9")
    await server.run_command("fail", how=fault)
    with pytest.raises(HandshakeRefused, match=answer):
        async with client_of(server, "a.b.c"):
            pass


@pytest.mark.parametrize("generation", ["0.9", "1.0", "4"])
async def test_expired_token_ends_its_session(generation: str, make_node_server: Callable[..., Any]) -> None:
    server = await make_node_server(generation, lifetime_seconds=2, kick_expired=True)
    async with await connected(server) as client:
        await client.until(lambda: client.end_reasons == ["server disconnect"])
        assert time.time() >= server.login_times[0] + 1  # `exp` is in whole seconds


@pytest.mark.parametrize("end", ["kick", "close", "reset"])
async def test_session_ends_by_each_command(server: NodeServer, end: str) -> None:
    async with await connected(server) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await server.run_command(end)
        await server.until(lambda: server.count("disconnected") == 1)
        await client.until(lambda: client.end_reasons)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_restarted_node_server_keeps_port_and_continues(server: NodeServer, end: str) -> None:
    token, url = await login(server.url, server.api_key), server.url
    async with client_of(server, token) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.rows("res"))
        await (server.kill() if end == "kill" else server.stop())
        await client.until(lambda: client.end_reasons)
    newest = max(row["ts"] for row in client.rows("res"))

    await server.start()
    assert server.url == url
    async with client_of(server, token) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.rows("res") and client.rows("res")[-1]["ts"] > newest)


async def test_burst_sends_new_rows_only(generation: str, make_node_server: Callable[..., Any]) -> None:
    server = await make_node_server(generation, interval_seconds=None)
    async with await connected(server) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.events)
        client.events.clear()
        await server.burst(500, rows=3)
        await client.until(lambda: len(client.events) == 500)
    assert len({row["ts"] for row in client.rows("res")}) == 1500


async def test_muted_ticker_sends_nothing_and_raw_text_is_sent(
    generation: str, make_node_server: Callable[..., Any]
) -> None:
    server = await make_node_server(generation, interval_seconds=None)
    await server.run_command("mute", ticker="AAPL")
    async with await connected(server) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await server.emit()
        empty = '5:::{"name":"res","args":[[]]}' if generation == "0.9" else '2["res",[]]'
        await server.run_command("raw", text=empty)
        await server.run_command("error", name="err", error={"message": "not today"})
        await client.until(lambda: client.events[-2:] == [("res", []), ("err", {"message": "not today"})])
    assert client.rows("res") == []


@pytest.mark.parametrize("generation", ["0.9", "4"])
async def test_data_event_can_request_an_ack(generation: str, make_node_server: Callable[..., Any]) -> None:
    server = await make_node_server(generation, interval_seconds=None)
    async with await connected(server) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await server.run_command("ask")
        await server.until(lambda: server.count("acknowledged") == 1)
