"""Real servers of Socket.IO 0.8 and 0.9, and the simulator's, to a database: what only this generation does."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web

from ingestor.provider.catalog import FEEDS, PATHS, base_name
from ingestor.provider.socket import connection as connection_module
from ingestor.provider.socket import socketio_09_client
from ingestor.provider.subscriptions import silence as silence_module
from ingestor.spool import spool as spool_module
from tests.support.faulty_simulator import FaultySimulator

from ..support import expected_rows
from ..support.daemon import InProcessDaemon, until, write_config
from ..support.node_server import NodeServer

CROWD = "/real-time/crowd-sentiment"
VOLUME = "/real-time/tweet-volume"
AAPL = {CROWD: ["AAPL"]}
BUGGY_BYTES = 65_536  # of a frame whose length the servers write as 0
NAMED = pytest.mark.parametrize("protocol", ["auto", "0.9"])
RECONNECTS = re.compile(r"^ingestor_reconnects_total\{.*\} [1-9].*$", re.MULTILINE)

pytestmark = pytest.mark.node


@pytest.fixture
def config_for(tmp_path: Path) -> Callable[..., Path]:
    """`config_for(server, database_url="sqlite:///…", subscriptions=AAPL, protocol="auto", …)`: a config file."""

    def write(url: str, database_url: str | None = None, subscriptions: Any = AAPL, **provider: Any) -> Path:
        database_url = database_url or f"sqlite:///{tmp_path / 'ingestor.db'}"
        return write_config(
            tmp_path, url=url, database_url=database_url, subscriptions=subscriptions, provider=provider
        )

    return write


def event(rows: list[dict[str, Any]], size: int) -> str:
    """Return a data event of this many bytes."""
    head, tail = '5:::{"name":"res","args":[', "]}"
    text = json.dumps(rows, separators=(",", ":"))
    return f"{head}{text}{' ' * (size - len(head) - len(text) - len(tail))}{tail}"


def row(minute: int) -> dict[str, Any]:
    return {"ts": f"2026-02-01T00:{minute:02}:00.000Z", "ticker": "AAPL", "average_sentiment": 0.25}


@pytest.mark.parametrize("count", [2500, pytest.param(5000, marks=pytest.mark.slow)])
async def test_thousands_of_subscriptions_are_live_without_a_kick(
    count: int, make_node_server: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    """0.9.19 counts many bytes several times: some 5 kB a subscription with 20 in flight, 50 kB with 200."""
    options = {"destroy buffer size": count * 8_000}
    server: NodeServer = await make_node_server("0.9", interval_seconds=None, window_rows=1, options=options)
    tickers = [f"T{number:04}" for number in range(count)]
    config = config_for(server.url, subscriptions={CROWD: tickers})
    async with InProcessDaemon(config, server.api_key) as daemon:
        began = time.monotonic()
        await daemon.wait_until_live()
        print(f"live after {time.monotonic() - began:.1f} s")
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))
        assert len(server.emitted) == len(tickers)
        assert server.count("disconnected") == 0


@pytest.mark.slow
async def test_silent_subscriptions_are_requested_ten_times_without_a_kick(
    make_node_server: Callable[..., Any], config_for: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeat counts as some 0.6 kB alone, and 5 kB with 20 in flight."""
    monkeypatch.setattr(silence_module, "MAX_RETRY_SECONDS", 1.0)
    silent = [f"T{number:03}" for number in range(1000)]
    budget = {"destroy buffer size": len(silent) * 20_000}
    server: NodeServer = await make_node_server("0.9", interval_seconds=0.2, window_rows=1, options=budget)
    for ticker in silent:
        await server.run_command("mute", ticker=ticker)
    config = config_for(server.url, subscriptions={CROWD: ["AAPL", *silent]}, silence="1s")
    async with InProcessDaemon(config, server.api_key) as daemon:
        await until(lambda: server.count("subscribed") > 11 * len(silent), 120)
        assert Counter(daemon.states) == {"live": 1, "silent": len(silent)}
        assert (server.count("connected"), server.count("disconnected")) == (1, 0)


async def test_frame_of_65_536_bytes_costs_the_connection_and_no_other_row(
    make_node_server: Callable[..., Any], config_for: Callable[..., Path], database_url: str
) -> None:
    server: NodeServer = await make_node_server("0.9", interval_seconds=None)
    async with InProcessDaemon(config_for(server.url, database_url), server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        for minute, size in enumerate((BUGGY_BYTES - 1, BUGGY_BYTES + 1)):
            await server.run_command("raw", text=event([row(minute)], size))
        neighbors = [expected_rows.Key("crowd-sentiment", "crowd_sentiment", "AAPL", "", row(m)["ts"]) for m in (0, 1)]
        arrived = dict.fromkeys(neighbors, 0.25)
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted) | arrived)
        assert daemon.connection_ids == at_first

        await asyncio.sleep(0.3)
        sent_at = datetime.now(UTC)
        await server.run_command("raw", text=event([row(2)], BUGGY_BYTES))
        await until(lambda: server.count("subscribed") == 2)
        await daemon.wait_until_live()
        await server.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted) | arrived)
        assert RECONNECTS.findall(await daemon.metrics()) == ['ingestor_reconnects_total{reason="lost"} 1.0']
    before, after = (interval for interval in daemon.db.coverage("AAPL") if interval["state"] == "live")
    (gap,) = daemon.db.gaps("AAPL")[1:]  # the first is before the first acknowledgement
    assert (gap["from_at"], gap["to_at"]) == (before["ended_at"], after["started_at"])
    assert before["ended_at"] < sent_at  # the event is lost, so its time is not covered
    assert "65,536 bytes" in gap["reason"]
    assert daemon.db.rows("SELECT * FROM dead_letters") == []


async def test_half_open_connection_is_a_gap_from_the_last_byte_heard(
    make_node_server: Callable[..., Any],
    tcp_proxy: Callable[[str], Any],
    config_for: Callable[..., Path],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socketio_09_client, "SLACK_SECONDS", 1.0)
    server: NodeServer = await make_node_server(
        "0.9", interval_seconds=None, ping_interval_seconds=0.5, ping_timeout_seconds=1
    )
    proxy = await tcp_proxy(server.url)
    async with InProcessDaemon(config_for(proxy.url, database_url), server.api_key) as daemon:
        await daemon.wait_until_live()
        await asyncio.sleep(1.5)
        half_open_at = datetime.now(UTC)
        proxy.half_open = True
        await until(lambda: daemon.states != ["live"])
        proxy.half_open = False
        await daemon.wait_until_live()
        assert RECONNECTS.findall(await daemon.metrics()) == ['ingestor_reconnects_total{reason="mute"} 1.0']
    _, live, *_ = daemon.db.coverage("AAPL")
    assert (half_open_at - live["ended_at"]).total_seconds() < 0.8  # the last heartbeat
    assert live["ended_at"] <= half_open_at


async def test_reset_connection_is_a_gap_from_the_last_byte_heard(
    make_node_server: Callable[..., Any],
    tcp_proxy: Callable[[str], Any],
    config_for: Callable[..., Path],
    database_url: str,
) -> None:
    server: NodeServer = await make_node_server("0.8", interval_seconds=None)
    proxy = await tcp_proxy(server.url)
    async with InProcessDaemon(config_for(proxy.url, database_url), server.api_key) as daemon:
        await daemon.wait_until_live()
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))
        heard_at = datetime.now(UTC)
        await asyncio.sleep(0.3)
        proxy.cut()
        await until(lambda: server.count("subscribed") == 2)
        await daemon.wait_until_live()
        await server.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))
        assert RECONNECTS.findall(await daemon.metrics()) == ['ingestor_reconnects_total{reason="lost"} 1.0']
    before, after = (interval for interval in daemon.db.coverage("AAPL") if interval["state"] == "live")
    (gap,) = daemon.db.gaps("AAPL")[1:]  # the first is before the first acknowledgement
    assert (gap["from_at"], gap["to_at"]) == (before["ended_at"], after["started_at"])
    assert before["ended_at"] <= heard_at


async def test_quiet_connection_outlasts_a_timeout_shorter_than_the_interval(
    make_node_server: Callable[..., Any], config_for: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, 0.8 announces 15 and 25 s, and sends a heartbeat every 20 s."""
    monkeypatch.setattr(socketio_09_client, "SLACK_SECONDS", 1.0)
    options = {"heartbeat interval": 3, "heartbeat timeout": 1, "close timeout": 4}
    server: NodeServer = await make_node_server("0.8", interval_seconds=None, options=options)
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        await asyncio.sleep(6.5)
        assert daemon.connection_ids == at_first
    assert server.count("connected") == 1


async def test_quiet_server_without_heartbeats_is_asked(
    make_node_server: Callable[..., Any], config_for: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketio_09_client, "ASK_SECONDS", 0.3)
    monkeypatch.setattr(socketio_09_client, "SLACK_SECONDS", 0.4)
    server: NodeServer = await make_node_server(
        "0.9", interval_seconds=None, options={"heartbeats": False, "close timeout": 1}
    )
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        await asyncio.sleep(3)
        assert daemon.connection_ids == at_first
    assert server.count("connected") == 1


@pytest.mark.parametrize("generation", ["0.8", "0.9"])
async def test_connection_outlasts_a_pause_longer_than_the_heartbeat_timeout(
    generation: str,
    make_node_server: Callable[..., Any],
    config_for: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server: NodeServer = await make_node_server(generation, ping_interval_seconds=1, ping_timeout_seconds=2)
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        with monkeypatch.context() as patched:
            patched.setattr(spool_module, "MAX_UNSYNCED_BYTES", -1)  # always congested
            await asyncio.sleep(7)
            stored = len(daemon.db.current())
        assert len(server.emitted) > stored + 100
        await server.run_command("mute", ticker="AAPL")
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))
        assert daemon.connection_ids == at_first
    assert server.count("connected") == 1


@pytest.mark.parametrize(("how", "error"), [("error", "HTTP 500"), ("never", "no answer within")])
async def test_authorization_that_fails_is_no_verdict_on_the_token(
    how: str,
    error: str,
    make_node_server: Callable[..., Any],
    config_for: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server: NodeServer = await make_node_server("0.9")
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        await daemon.wait_until_live()
        await server.run_command("fail", how=how)
        with monkeypatch.context() as patched:
            patched.setattr(connection_module, "OPEN_SECONDS", 1.0)
            await server.run_command("kick")
            await until(lambda: error in (daemon.status.connections[0].last_error or ""))
            await server.run_command("fail", how=None)
        await daemon.wait_until_live()
    assert server.count("login") == 1


async def test_revoked_token_is_replaced(make_node_server: Callable[..., Any], config_for: Callable[..., Path]) -> None:
    server: NodeServer = await make_node_server("0.8")
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        await daemon.wait_until_live()
        await server.run_command("revoke")
        await server.run_command("kick")
        await until(lambda: server.count("subscribed") == 2)
    assert (server.count("login"), server.count("refused")) == (2, 1)
    reason = daemon.db.scalar("SELECT detail FROM events WHERE kind = 'connect_failed'")
    assert "handshake unauthorized" in str(reason)


@pytest.mark.parametrize("generation", ["0.8", "0.9.16", "0.9"])
async def test_server_that_requires_its_own_origin_is_received(
    generation: str, make_node_server: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    server: NodeServer = await make_node_server(generation, interval_seconds=None, options={"origins": "127.0.0.1:*"})
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        await daemon.wait_until_live()
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))


async def test_server_that_requires_another_origin_is_named_and_the_token_kept(
    make_node_server: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    server: NodeServer = await make_node_server("0.9", options={"origins": "elsewhere.test:*"})
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        error = await until(lambda: daemon.status.connections[0].last_error)
    assert error.startswith("HTTP 403: the server wants another origin than provider.url ('handshake bad origin')")
    assert server.count("login") == 1


@NAMED
async def test_polling_only_server_is_named(
    protocol: str, make_node_server: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    server: NodeServer = await make_node_server("0.9", options={"transports": ["xhr-polling", "jsonp-polling"]})
    async with InProcessDaemon(config_for(server.url, protocol=protocol), server.api_key) as daemon:
        error = await until(lambda: daemon.status.connections[0].last_error)
    assert error.startswith("the server offers no websocket, only xhr-polling,jsonp-polling")


@NAMED
async def test_socket_io_0_7_is_named(
    protocol: str, make_node_server: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    server: NodeServer = await make_node_server("0.7")
    async with InProcessDaemon(config_for(server.url, protocol=protocol), server.api_key) as daemon:
        error = await until(lambda: daemon.status.connections[0].last_error)
    assert "instead of opening a websocket, as Socket.IO 0.7 does" in error
    assert server.count("login") == 1


# In the form of later versions, as decoder and `dead-letters retry` know it.
DEAD_TEXTS = {
    '5:::{"name":"res"}': '42["res"]',
    '5:::{"name":"res","args":[]}': '42["res"]',
    '5:::{"name":"res","args":[{bad]}': "{bad",
    '5:::{"name":"res","args":[[],[]]}': "[],[]",
    '5:::{"name":"res","args":["\\u0000"]}': '"\\u0000"',
    '5:::{"name":"other","args":[1]}': "1",
    '5:::{"name":"disconnect","args":[1]}': "1",
    "3:::hello:world": '"hello:world"',
    "9:::": "9:::",
}


async def test_unreadable_messages_become_dead_letters_and_others_are_decoded(
    make_node_server: Callable[..., Any], config_for: Callable[..., Path], database_url: str
) -> None:
    server: NodeServer = await make_node_server("0.9.16", interval_seconds=None)
    async with InProcessDaemon(config_for(server.url, database_url), server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        for text in DEAD_TEXTS:
            await server.run_command("raw", text=text)
            await server.emit()
        await server.run_command("raw", text=f'5:::{{"args": [{json.dumps([row(7)])}], "name": "res"}}')
        key = expected_rows.Key("crowd-sentiment", "crowd_sentiment", "AAPL", "", row(7)["ts"])
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted) | {key: 0.25})
        assert daemon.connection_ids == at_first
    assert daemon.db.column("SELECT body FROM dead_letters ORDER BY seq") == list(DEAD_TEXTS.values())


@NAMED
async def test_simulator_is_received_and_its_generation_shown(
    protocol: str, make_simulator: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    simulator: FaultySimulator = await make_simulator(protocol="0.9")
    config = config_for(simulator.url, subscriptions={CROWD: ["AAPL"], "crowd-sentiment": ["ON"]}, protocol=protocol)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: simulator.ticks > 20)
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
        assert {connection.dialect for connection in daemon.status.connections} == {"0.9"}


@pytest.mark.parametrize(
    ("lifetime_seconds", "seconds"),
    [(7, 0), pytest.param(20, 120, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
)
async def test_renewal_by_overlap_loses_no_row_and_leaves_no_gap(
    lifetime_seconds: float, seconds: float, make_node_server: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    server: NodeServer = await make_node_server("0.9", lifetime_seconds=lifetime_seconds, kick_expired=True)
    async with InProcessDaemon(config_for(server.url), server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        await asyncio.sleep(max(seconds, lifetime_seconds))
        await until(lambda: server.count("login") >= 2)
        assert server.count("login") >= seconds / lifetime_seconds
        assert (await daemon.wait_until_live()) != at_first
        assert RECONNECTS.findall(await daemon.metrics()) == []
        await server.run_command("mute", ticker="AAPL")
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))  # nothing is missing
        assert len(server.emitted) >= 10 * seconds  # of 20 a second
        print(f"{server.count('login')} logins, {len(expected_rows.current(server.emitted))} rows")
    assert daemon.db.states("AAPL") == ["pending", "live", "stopped"]
    assert daemon.db.column("SELECT kind FROM events WHERE kind = 'disconnected'") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("generation", ["0.8", "0.9.16", "0.9"])
async def test_busy_and_quiet_connections_outlast_the_timing_of_the_server_itself(
    generation: str, make_node_server: Callable[..., Any], config_for: Callable[..., Path], database_url: str
) -> None:
    """A server ends a connection that answers no heartbeat after 35 s (0.8) or 85 s (0.9)."""
    server: NodeServer = await make_node_server(generation)
    await server.run_command("mute", ticker="ON")
    config = config_for(server.url, database_url, {CROWD: ["AAPL"], VOLUME: ["ON"]})
    async with InProcessDaemon(config, server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        await asyncio.sleep(180)
        assert daemon.connection_ids == at_first
        await server.run_command("mute", ticker="AAPL")
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))
        assert len(server.emitted) > 1000
    assert server.count("connected") == 2


class StickyBalancer:
    """A balancer: it sends requests to two servers in turn, but to the same one if they have its cookie."""

    def __init__(self, *servers: NodeServer) -> None:
        self._servers = servers
        self._turns = itertools.cycle(range(len(servers)))

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, max_line_size=2**16)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        number = int(request.cookies.get("server", next(self._turns)))
        url = f"{self._servers[number].url}{request.path_qs}"
        if "Upgrade" in request.headers:
            return await self._join(request, url)
        headers = {"Authorization": request.headers.get("Authorization", "")}
        async with self._session.request(request.method, url, headers=headers) as answer:
            response = web.Response(status=answer.status, body=await answer.read())
        response.set_cookie("server", str(number))
        return response

    async def _join(self, request: web.Request, url: str) -> web.StreamResponse:
        front = web.WebSocketResponse()
        await front.prepare(request)
        async with self._session.ws_connect(url) as back:
            pumps = [asyncio.create_task(self._pump(*pair)) for pair in ((front, back), (back, front))]
            _, pending = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pending:
                pump.cancel()
        if request.transport is not None:
            request.transport.close()
        return front

    async def _pump(self, source: Any, target: Any) -> None:
        async for message in source:
            await target.send_str(message.data)


async def test_every_websocket_reaches_the_server_of_its_handshake_behind_a_sticky_balancer(
    make_node_server: Callable[..., Any], config_for: Callable[..., Path]
) -> None:
    first: NodeServer = await make_node_server("0.9")
    second: NodeServer = await make_node_server("0.9", twin=first)
    paths = [path for path in PATHS if path.startswith("/") and not FEEDS[base_name(path)].by_user]
    async with StickyBalancer(first, second) as balancer:
        config = config_for(balancer.url, subscriptions={path: ["AAPL"] for path in paths})
        async with InProcessDaemon(config, first.api_key) as daemon:
            await daemon.wait_until_live()
            assert first.count("connected") + second.count("connected") == len(paths)
            assert first.count("connected") > 0 < second.count("connected")
            assert daemon.db.column("SELECT kind FROM events WHERE kind = 'connect_failed'") == []
