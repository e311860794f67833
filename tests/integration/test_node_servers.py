"""Real socket.io servers of each generation do what the tests that stand on them believe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from ..support import node_server as peers
from ..support.node_server import Peer
from ..support.reference_clients import Client, OldClient, Refused, login

CROWD = "/real-time/crowd-sentiment"

pytestmark = pytest.mark.node


@pytest.fixture(params=["1", "2", "4"])
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def peer(generation: str, socketio_peer: Callable[..., Any]) -> Peer:
    made: Peer = await socketio_peer(generation)
    return made


async def connected(peer: Peer) -> Client | OldClient:
    return client_of(peer, await login(peer.url, peer.api_key))


def client_of(peer: Peer, token: str) -> Client | OldClient:
    return (Client if peer.version.startswith("4") else OldClient)(peer.url, token)


@pytest.mark.parametrize("generation", peers.VERSIONS)
async def test_the_version_is_the_one_that_was_asked_for(peer: Peer, generation: str) -> None:
    assert [one["version"] for one in peer.happenings if one["event"] == "listening"] == [peers.VERSIONS[generation]]


async def test_a_wrong_key_gets_no_token(peer: Peer) -> None:
    with pytest.raises(aiohttp.ClientResponseError, match="401"):
        await login(peer.url, "wrong")


@pytest.mark.parametrize(("token", "said"), [("", "no token given"), ("a.b.c", "invalid signature")])
async def test_a_handshake_without_a_good_token_is_refused(peer: Peer, token: str, said: str) -> None:
    with pytest.raises(Refused) as refusal:
        async with client_of(peer, token):
            pass
    # An object in 3.x/4.x, a string in 1.x/2.x.
    assert refusal.value.args[0] == ({"message": said} if peer.version.startswith("4") else said)


async def test_a_revoked_token_is_refused(peer: Peer) -> None:
    token = await login(peer.url, peer.api_key)
    await peer.do("revoke")
    with pytest.raises(Refused):
        async with client_of(peer, token):
            pass


async def test_an_expired_token_is_refused(generation: str, socketio_peer: Callable[..., Any]) -> None:
    peer = await socketio_peer(generation, lifetime_seconds=-1)
    with pytest.raises(Refused, match="jwt expired"):
        async with await connected(peer):
            pass


async def test_subscribed_rows_arrive_as_they_were_emitted(peer: Peer) -> None:
    async with await connected(peer) as client:
        assert await client.ask("subscribe", CROWD, ticker="AAPL") is None
        assert await client.ask("subscribe", "crowd-sentiment", ticker="ON") is None
        await client.until(lambda: len(client.rows("res")) > 50 and len(client.rows("data")) > 50)

    for event in ("res", "data"):
        arrived = client.rows(event)
        emitted = [row for one in peer.emitted if one.event == event for row in one.rows]
        assert arrived == emitted[: len(arrived)]


async def test_values_can_be_recomputed(peer: Peer) -> None:
    async with await connected(peer) as client:
        await client.ask("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.rows("res"))
    first = client.rows("res")[0]
    minutes = (datetime.fromisoformat(first["ts"]) - peers.START).total_seconds() / 60
    value = peers.value(7, CROWD, "average_sentiment", "AAPL", int(minutes))
    assert first["average_sentiment"] == f"{value:.16f}"  # which is not every double to its last bit


async def test_a_refused_subscription_says_why_and_unsubscribing_ends_the_data(peer: Peer) -> None:
    await peer.do("refuse", name="CLSD", message="closed to you")
    async with await connected(peer) as client:
        assert await client.ask("subscribe", CROWD, ticker="CLSD") == {
            "type": "invalid_request_error",
            "message": "closed to you",
        }
        assert "No such endpoint" in (await client.ask("subscribe", "/real-time/nonsense", ticker="A"))["message"]
        await client.ask("subscribe", CROWD, ticker="AAPL")
        assert await client.ask("unsubscribe", CROWD, ticker="AAPL") is None
        seen = len(peer.emitted)
        await peer.emit()
        assert len(peer.emitted) == seen


async def test_pings_keep_a_session_alive_and_its_end_is_told(
    generation: str, socketio_peer: Callable[..., Any]
) -> None:
    peer = await socketio_peer(generation, ping_interval_seconds=0.3, ping_timeout_seconds=0.3)
    async with await connected(peer) as client:
        await asyncio.sleep(1.5)
        assert client.endings == []
    await peer.until(lambda: peer.count("disconnected") == 1)


async def test_a_client_that_does_not_ping_is_dropped(generation: str, socketio_peer: Callable[..., Any]) -> None:
    peer = await socketio_peer(generation, ping_interval_seconds=0.3, ping_timeout_seconds=0.3)
    async with aiohttp.ClientSession() as session:
        token = await login(peer.url, peer.api_key)
        revision = 4 if generation == "4" else 3
        target = f"{peer.url}/socket.io/?EIO={revision}&transport=websocket&token={token}"
        async with session.ws_connect(target) as socket:
            async with asyncio.timeout(5):
                while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            assert socket.closed


@pytest.mark.parametrize("generation", ["1.0", "4"])
async def test_a_token_that_ends_is_the_end_of_its_session(generation: str, socketio_peer: Callable[..., Any]) -> None:
    peer = await socketio_peer(generation, lifetime_seconds=2, kick_expired=True)
    async with await connected(peer) as client:
        await client.until(lambda: client.endings == ["server disconnect"])
        assert time.time() >= peer.login_times[0] + 1  # `exp` is in whole seconds


@pytest.mark.parametrize("end", ["kick", "close", "reset"])
async def test_a_session_ends_in_each_of_the_ways(peer: Peer, end: str) -> None:
    async with await connected(peer) as client:
        await client.ask("subscribe", CROWD, ticker="AAPL")
        await peer.do(end)
        await peer.until(lambda: peer.count("disconnected") == 1)
        await client.until(lambda: client.endings)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_peer_that_was_started_again_is_on_its_port_and_goes_on(peer: Peer, end: str) -> None:
    token, url = await login(peer.url, peer.api_key), peer.url
    async with client_of(peer, token) as client:
        await client.ask("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.rows("res"))
        await (peer.kill() if end == "kill" else peer.stop())
        await client.until(lambda: client.endings)
    newest = max(row["ts"] for row in client.rows("res"))

    await peer.start()
    assert peer.url == url
    async with client_of(peer, token) as client:
        await client.ask("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.rows("res") and client.rows("res")[-1]["ts"] > newest)


async def test_a_burst_brings_new_rows_only(generation: str, socketio_peer: Callable[..., Any]) -> None:
    peer = await socketio_peer(generation, interval_seconds=None)
    async with await connected(peer) as client:
        await client.ask("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.events)
        client.events.clear()
        await peer.burst(500, rows=3)
        await client.until(lambda: len(client.events) == 500)
    assert len({row["ts"] for row in client.rows("res")}) == 1500


async def test_a_mute_ticker_says_nothing_and_any_text_can_be_sent(
    generation: str, socketio_peer: Callable[..., Any]
) -> None:
    peer = await socketio_peer(generation, interval_seconds=None)
    await peer.do("mute", ticker="AAPL")
    async with await connected(peer) as client:
        await client.ask("subscribe", CROWD, ticker="AAPL")
        await peer.emit()
        await peer.do("raw", text='2["res",[]]')
        await peer.do("error", name="err", error={"message": "not today"})
        await client.until(lambda: client.events[-2:] == [("res", []), ("err", {"message": "not today"})])
    assert client.rows("res") == []


async def test_a_data_event_may_ask_to_be_acknowledged(socketio_peer: Callable[..., Any]) -> None:
    peer = await socketio_peer("4", interval_seconds=None)
    async with await connected(peer) as client:
        await client.ask("subscribe", CROWD, ticker="AAPL")
        await peer.do("ask")
        await peer.until(lambda: peer.count("acknowledged") == 1)
