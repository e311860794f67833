"""The simulator sends what the documentation shows, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from ingestor.provider import catalog
from ingestor.simulator import Market
from tests.support.faulty_simulator import Fault, FaultySimulator

from ..support import expected_rows
from ..support.reference_clients import EngineIo4Client, HandshakeRefused, basic_auth, login

CROWD = "/real-time/crowd-sentiment"


async def connected(simulator: FaultySimulator) -> EngineIo4Client:
    return EngineIo4Client(simulator.url, await login(simulator.url, simulator.api_key))


async def get(simulator: FaultySimulator, path: str, key: str | None = None, **query: str) -> tuple[int, Any]:
    headers = basic_auth(simulator.api_key if key is None else key)
    async with (
        aiohttp.ClientSession(simulator.url, headers=headers) as session,
        session.get(path, params=query) as response,
    ):
        return response.status, await response.json()


def claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


# Tokens.


async def test_token_contains_secret_claims(simulator: FaultySimulator) -> None:
    decoded = claims(await login(simulator.url, simulator.api_key))

    assert decoded["api"] == simulator.api_key
    assert {"email", "password", "salt", "endpoint_paths", "streaming_endpoint_paths"} <= decoded.keys()
    assert decoded["exp"] - decoded["iat"] == 5 * 3600
    assert simulator.logins == 1


@pytest.mark.parametrize(("time_claims", "present"), [("iat+exp", {"iat", "exp"}), ("exp", {"exp"}), ("none", set())])
async def test_token_has_the_configured_time_claims(
    make_simulator: Callable[..., Any], time_claims: str, present: set[str]
) -> None:
    simulator = await make_simulator(time_claims=time_claims)
    decoded = claims(await login(simulator.url, simulator.api_key))
    assert decoded.keys() & {"iat", "exp"} == present


@pytest.mark.parametrize("size", [239, 5204, 9311])
async def test_token_of_documented_size_is_issued_and_accepted(make_simulator: Callable[..., Any], size: int) -> None:
    simulator = await make_simulator(token_bytes=size)
    token = await login(simulator.url, simulator.api_key)
    assert size - 3 <= len(token) <= size
    async with EngineIo4Client(simulator.url, token) as client:
        assert await client.request("subscribe", CROWD, ticker="AAPL") is None


async def test_wrong_key_gets_no_token(simulator: FaultySimulator) -> None:
    with pytest.raises(aiohttp.ClientResponseError, match="401"):
        await login(simulator.url, "wrong")
    assert (simulator.logins, simulator.login_attempts) == (0, 1)


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        pytest.param(Fault(status=429, headers={"Retry-After": "7"}), 429, None, id="too many"),
        pytest.param(Fault(status=503, body="down"), 503, "down", id="down"),
        pytest.param(Fault(body="<html>"), 200, "<html>", id="html"),
        pytest.param(Fault(body="{}", trickle_seconds=0.01, delay_seconds=0.05), 200, "{}", id="trickle"),
        pytest.param(Fault(status=302, headers={"Location": "/elsewhere"}), 302, None, id="redirect"),
    ],
)
async def test_login_fault_shapes_the_response(
    simulator: FaultySimulator, fault: Fault, status: int, body: str | None
) -> None:
    simulator.login_fault = fault
    async with aiohttp.ClientSession(headers=basic_auth(simulator.api_key)) as session:
        started = time.monotonic()
        async with session.post(f"{simulator.url}/jwt", allow_redirects=False) as response:
            text = await response.text()
    assert response.status == status
    assert body is None or text == body
    assert all(response.headers[name] == value for name, value in fault.headers.items())
    assert time.monotonic() - started >= fault.delay_seconds + fault.trickle_seconds


# Handshakes.


@pytest.mark.parametrize(
    ("token", "message"), [("", "no token given"), ("eyJ0.eyJ9.c2ln", "invalid signature")], ids=["missing", "forged"]
)
async def test_handshake_without_valid_token_is_refused(simulator: FaultySimulator, token: str, message: str) -> None:
    with pytest.raises(HandshakeRefused) as refusal:
        async with EngineIo4Client(simulator.url, token):
            pass
    assert refusal.value.args == ({"message": message},)
    assert simulator.handshakes == 0


async def test_expired_token_is_refused_and_its_session_kicked(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(token_lifetime_seconds=0.4, kick_expired=True, interval_seconds=None)
    token = await login(simulator.url, simulator.api_key)
    async with EngineIo4Client(simulator.url, token) as client:
        await client.until(lambda: not client.connected)
    with pytest.raises(HandshakeRefused, match="jwt expired"):
        async with EngineIo4Client(simulator.url, token):
            pass


async def test_revoked_token_is_refused_and_new_one_accepted(simulator: FaultySimulator) -> None:
    token = await login(simulator.url, simulator.api_key)
    simulator.tokens.revoke()
    with pytest.raises(HandshakeRefused):
        async with EngineIo4Client(simulator.url, token):
            pass
    async with await connected(simulator) as client:
        assert client.connected


# Subscriptions and their data.


@pytest.mark.parametrize("path", catalog.PATHS)
async def test_every_path_delivers_rows_with_its_fields(simulator: FaultySimulator, path: str) -> None:
    event = "res" if path.startswith("/") else "data"
    async with await connected(simulator) as client:
        assert await client.request("subscribe", path, ticker="AAPL") is None
        await client.until(lambda: client.rows(event))

    row = client.rows(event)[0]
    metrics = {catalog.FEEDS[catalog.base_name(path)].metrics[field] for field in row.keys() - expected_rows.KEY_FIELDS}
    assert metrics == set(catalog.FEEDS[catalog.base_name(path)].metrics.values())
    assert row["ticker"] == "AAPL"
    assert ("user_id" in row) == catalog.FEEDS[catalog.base_name(path)].by_user


async def test_real_time_path_sends_list_over_rolling_window(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(interval_seconds=None)
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.events)
        await simulator.tick()
        await client.until(lambda: len(client.events) == 2)

    first, second = ([row["ts"] for row in payload] for _, payload in client.events)
    assert first[-1] == "2026-01-05T14:30:00.000Z"
    assert first[1:] == second[:-1]
    assert len(first) == len(second) == 10


async def test_stream_sends_envelopes_with_new_rows_of_all_tickers(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(interval_seconds=None, tickers=("AAPL", "ON"))
    async with await connected(simulator) as client:
        await client.request("subscribe", "crowd-sentiment")
        await client.until(lambda: client.events)
        await simulator.tick()
        await client.until(lambda: len(client.events) == 2)

    (_, first), (_, second) = client.events
    assert (first["path"], first["params"]) == ("crowd-sentiment", {})
    assert [row["ticker"] for row in first["results"]] == ["AAPL", "ON"]
    assert {row["ts"] for row in second["results"]} == {"2026-01-05T14:31:00.000Z"}
    assert first["timestamp"] == "2026-01-05T10:30:00.000Z", "four hours off, as documented"


async def test_values_alternate_between_numbers_and_text(simulator: FaultySimulator) -> None:
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: len(client.events) >= 2)

    (_, first), (_, second) = client.events[:2]
    by_ts = {row["ts"]: row["average_sentiment"] for row in first}
    for row in second[:-1]:
        assert {type(row["average_sentiment"]), type(by_ts[row["ts"]])} == {str, float}
        assert float(row["average_sentiment"]) == float(by_ts[row["ts"]])


async def test_values_are_a_reproducible_random_walk(simulator: FaultySimulator) -> None:
    simulator.interval_seconds = None  # so that its time stands still
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="TSLA")
        await client.until(lambda: client.rows("res"))

    market = Market(7, ())
    first = market.bucket(CROWD, simulator.now - simulator.ticks * 60 - 600) + 1
    expected_values = [market.value(CROWD, "crowd_sentiment", "TSLA", first + number) for number in range(10)]
    assert [float(row["average_sentiment"]) for row in client.rows("res")[:10]] == expected_values
    assert max(abs(b - a) for a, b in pairwise(expected_values)) < 0.5, "a walk, not noise"


async def test_emitted_records_what_the_client_received(simulator: FaultySimulator) -> None:
    async with await connected(simulator) as client:
        for path in (CROWD, "/real-time/user-sentiment", "crowd-sentiment-chart-data"):
            await client.request("subscribe", path, ticker="AAPL")
        await client.until(lambda: len(client.events) > 20)

    received = [rows["results"] if isinstance(rows, dict) else rows for _, rows in client.events]
    assert received == [emission.rows for emission in simulator.emitted][: len(received)]
    assert all(len(given) == 1 for given in expected_rows.values(simulator.emitted).values()), "nothing was restated"


async def test_restated_value_is_sent_again_and_stays(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(interval_seconds=None)
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.events)
        simulator.restate(CROWD, "AAPL", buckets_ago=2)
        for _ in range(2):
            await simulator.tick()
        await client.until(lambda: len(client.events) == 3)

    restated = {key.ts: given for key, given in expected_rows.values(simulator.emitted).items() if len(given) > 1}
    assert list(restated) == ["2026-01-05T14:28:00.000Z"]
    assert len(restated["2026-01-05T14:28:00.000Z"]) == 2


async def test_restate_every_restates_periodically(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(restate_every=2)
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: len(client.events) > 6)
    assert max(len(given) for given in expected_rows.values(simulator.emitted).values()) == 2


async def test_unsubscribe_ends_the_data(simulator: FaultySimulator) -> None:
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        assert [(request.path, dict(request.params)) for request in simulator.subscriptions()] == [
            (CROWD, {"ticker": "AAPL"})
        ]
        assert await client.request("unsubscribe", CROWD, ticker="AAPL") is None
        assert simulator.subscriptions() == []
        assert (await client.request("unsubscribe", CROWD, ticker="AAPL"))["type"] == "invalid_request_error"


# Refusals and silence.


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        ("/real-time/crowd-sentimet", {"ticker": "AAPL"}, "No such endpoint"),
        (CROWD, {}, "Missing required parameter: ticker"),
        (CROWD, {"ticker": "CLSD"}, "closed to you"),
    ],
)
async def test_refused_subscription_has_a_reason(
    simulator: FaultySimulator, path: str, params: dict[str, str], message: str
) -> None:
    simulator.refuse("CLSD", "closed to you")
    async with await connected(simulator) as client:
        error = await client.request("subscribe", path, **params)
        assert error["type"] == "invalid_request_error"
        assert message in error["message"]
        assert simulator.subscriptions() == []
        simulator.allow("CLSD")
        assert await client.request("subscribe", CROWD, ticker="CLSD") is None


async def test_unanswered_subscription_is_not_acknowledged(simulator: FaultySimulator) -> None:
    simulator.unanswered.add("AAPL")
    async with await connected(simulator) as client:
        with pytest.raises(TimeoutError):
            await client.request("subscribe", CROWD, ticker="AAPL")


async def test_muted_ticker_sends_nothing_and_quiet_one_empty_lists(simulator: FaultySimulator) -> None:
    simulator.mute("MUTE")
    simulator.quiet.add("EMPTY")
    async with await connected(simulator) as client:
        for ticker in ("MUTE", "EMPTY", "AAPL"):
            await client.request("subscribe", CROWD, ticker=ticker)
        await client.until(lambda: len(client.events) > 10)
        assert ("res", []) in client.events
        assert {row["ticker"] for row in client.rows("res")} == {"AAPL"}
        simulator.unmute("MUTE")
        await client.until(lambda: any(row["ticker"] == "MUTE" for row in client.rows("res")))


# Disconnects, bursts, raw text.


async def test_kick_disconnects_the_client(simulator: FaultySimulator) -> None:
    async with await connected(simulator) as client:
        await simulator.kick()
        await client.until(lambda: client.end_reasons == ["server disconnect"])
        assert simulator.connections == []


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_close_transport_closes_or_resets(simulator: FaultySimulator, how: Any) -> None:
    async with await connected(simulator) as client:
        await simulator.close_transport(how)
        await client.until(lambda: not client.connected)
    assert simulator.connections == []


async def test_restarted_simulator_keeps_port_and_tokens(simulator: FaultySimulator) -> None:
    url, token = simulator.url, await login(simulator.url, simulator.api_key)
    await simulator.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await login(url, simulator.api_key)
    await simulator.start()
    async with EngineIo4Client(url, token) as client:
        assert await client.request("subscribe", CROWD, ticker="AAPL") is None


async def test_burst_sends_new_rows_only(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(interval_seconds=None)
    async with await connected(simulator) as client:
        for ticker in ("AAPL", "ON"):
            await client.request("subscribe", CROWD, ticker=ticker)
        await client.until(lambda: len(client.events) == 2)
        client.events.clear()
        await simulator.burst(3000, rows=2)
        await client.until(lambda: len(client.events) == 3000)
    keys = [(row["ticker"], row["ts"]) for row in client.rows("res")]
    assert len(set(keys)) == 6000


async def test_any_text_can_be_sent(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(interval_seconds=None)
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.events)
        await simulator.emit_raw(CROWD, '{"odd": [1e400, "\\ud800"]}')
        await simulator.send_event("err", {"message": "not today"})
        await simulator.send_text('2["res",[]]')
        await client.until(lambda: len(client.events) == 4)
    assert client.events[1] == ("res", {"odd": [float("inf"), "\ud800"]})
    assert client.events[2:] == [("err", {"message": "not today"}), ("res", [])]


# REST.


async def test_rest_returns_the_window_that_the_socket_sends(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(interval_seconds=None, style="text")
    async with await connected(simulator) as client:
        await client.request("subscribe", CROWD, ticker="AAPL")
        await client.until(lambda: client.events)
    status, rows = await get(simulator, CROWD, ticker="AAPL")
    assert (status, rows) == (200, client.rows("res"))


async def test_historical_rows_equal_streamed_rows(make_simulator: Callable[..., Any]) -> None:
    simulator = await make_simulator(interval_seconds=None, style="text")
    status, rows = await get(
        simulator,
        "/historical/crowd-sentiment",
        ticker="AAPL",
        start_ts="2026-01-04T10:00:00.000Z",
        end_ts="2026-01-04T10:04:00.000Z",
    )
    assert status == 200
    assert [row["ts"][11:16] for row in rows] == ["10:00", "10:01", "10:02", "10:03", "10:04"]
    bucket = simulator.market.bucket(CROWD, simulator.now) - (28 * 60 + 30)
    assert float(rows[0]["average_sentiment"]) == simulator.market.value(CROWD, "crowd_sentiment", "AAPL", bucket)


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        pytest.param(CROWD, {}, 400, id="no ticker"),
        pytest.param("/real-time/nonsense", {"ticker": "A"}, 404, id="no such endpoint"),
        pytest.param("/historical/crowd-sentiment", {"ticker": "A"}, 400, id="no bounds"),
        pytest.param(
            "/historical/crowd-sentiment",
            {"ticker": "A", "start_ts": "2026-01-05T00:00:00Z", "end_ts": "2026-01-05T14:00:00Z"},
            400,
            id="today",
        ),
        pytest.param(
            "/historical/crowd-sentiment-chart-data",
            {"ticker": "A", "start_date": "12-01-2025", "end_date": "12-20-2025"},
            400,
            id="more than seven days",
        ),
    ],
)
async def test_rest_refuses_invalid_requests(
    simulator: FaultySimulator, path: str, query: dict[str, str], status: int
) -> None:
    actual, error = await get(simulator, path, **query)
    assert (actual, error["type"]) == (status, "invalid_request_error")


async def test_rest_requires_the_key(simulator: FaultySimulator) -> None:
    status, _ = await get(simulator, CROWD, key="wrong", ticker="AAPL")
    assert status == 401


async def test_stop_leaves_no_task_running(make_simulator: Callable[..., Any]) -> None:
    before = asyncio.all_tasks()
    simulator = FaultySimulator(seed=1, ping_interval_seconds=1)
    await simulator.start()
    await login(simulator.url, simulator.api_key)
    await simulator.stop()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
