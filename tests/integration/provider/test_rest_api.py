"""REST requests to servers that misbehave: the error that each response causes, and the pause after it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from pydantic import SecretStr

from ingestor.errors import IngestorError, ResponseTooLarge, RestRefused, RestUnavailable, TokenRefused
from ingestor.provider import rest_api
from ingestor.provider.rest_api import RestClient, RestRequest, RestResponse, history_request
from tests.support.faulty_simulator import FaultySimulator
from tests.support.repairs import CROWD, at

from .raw_http_server import RawHttpServer, http
from .raw_http_server import Reply as Served

REQUEST = RestRequest(path=CROWD, params={"ticker": "A&B"})
KEY = SecretStr("s3cret-api-key")
Serve = Callable[..., Awaitable[RawHttpServer]]


def client(url: str) -> RestClient:
    return RestClient(url, lambda: KEY)


async def get(rest: RestClient, request: RestRequest = REQUEST) -> RestResponse:
    return await asyncio.to_thread(rest.get, request)


async def test_response_carries_send_time_and_starts_a_pause(web_server: Serve) -> None:
    server = await web_server(http(200, '[{"ts": "…"}]'))
    rest = client(server.url)
    before = time.time_ns() // 1000
    response = await get(rest)
    assert response.text == '[{"ts": "…"}]'
    assert before <= response.sent_us <= time.time_ns() // 1000
    assert 0 < rest.pause_seconds <= rest_api.SPACING_SECONDS
    assert server.requests[0].startswith(b"GET /real-time/crowd-sentiment?ticker=A%26B HTTP/1.1\r\n")
    assert b"Authorization: Basic czNjcmV0LWFwaS1rZXk6\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("reply", "error", "message", "pause_seconds"),
    [
        pytest.param(http(400, '{"type": "t", "message": "m"}'), RestRefused, "HTTP 400: t: m", 2, id="400"),
        pytest.param(http(404, "<html>"), RestRefused, "HTTP 404", 2, id="404"),
        pytest.param(http(401), TokenRefused, "the API key is not accepted; check provider.", 15, id="401"),
        pytest.param(http(500, '{"message": "s3cret-api-key"}'), RestUnavailable, "HTTP 500: ", 15, id="500"),
        pytest.param(http(429, Retry_After="600"), RestUnavailable, "HTTP 429", 600, id="Retry-After"),
        pytest.param(http(302, Location="http://elsewhere"), RestUnavailable, "HTTP 302", 15, id="redirect"),
        pytest.param(http(200, b"[\xff]"), RestUnavailable, "the response is not UTF-8", 15, id="not UTF-8"),
        pytest.param(b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n[]", RestUnavailable, "Incomplete", 15, id="cut"),
    ],
)  # fmt: skip
async def test_unusable_response_raises_typed_error_and_pauses(
    web_server: Serve, reply: bytes, error: type[IngestorError], message: str, pause_seconds: float
) -> None:
    server = await web_server(reply)
    rest = client(server.url)
    with pytest.raises(error) as raised:
        await get(rest)
    assert str(raised.value).startswith("/real-time/crowd-sentiment: ")
    assert message in str(raised.value)
    assert pause_seconds / 2 - 1 < rest.pause_seconds <= pause_seconds


async def test_oversized_response_is_not_read(web_server: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_api, "MAX_RESPONSE_BYTES", 100_000)
    server = await web_server(http(200, "x" * 1_000_000))
    with pytest.raises(ResponseTooLarge, match="longer than 100000 bytes"):
        await get(client(server.url))


async def test_repeated_failures_lengthen_the_pause(web_server: Serve) -> None:
    server = await web_server(*[http(503)] * 4, http(200, "[]"), http(503))
    rest, pauses = client(server.url), []
    for _ in range(6):
        try:
            await get(rest)
        except RestUnavailable:
            pass
        pauses.append(rest.pause_seconds)
        rest._not_before = 0.0
    assert pauses[3] > 59 > 15 >= pauses[0]
    assert pauses[4] <= 2
    assert pauses[5] <= 15


async def test_cancel_ends_current_request_and_prevents_later_ones(web_server: Serve) -> None:
    received = threading.Event()

    async def never(_: bytes) -> AsyncIterator[bytes]:
        received.set()
        await asyncio.sleep(60)
        yield b""

    reply: Served = never
    server = await web_server(reply)
    rest = client(server.url)
    attempt = asyncio.create_task(get(rest))
    await asyncio.to_thread(received.wait, 5)
    started = time.monotonic()
    rest.cancel()
    for response in (attempt, get(rest)):
        with pytest.raises(RestUnavailable):
            await response
    assert time.monotonic() - started < 5
    assert len(server.requests) == 1


async def test_history_request_returns_the_requested_range(simulator: FaultySimulator) -> None:
    for path in ("/real-time/crowd-sentiment", "crowd-sentiment-chart-data", "user-sentiment"):
        request = history_request(path, {"ticker": "AAPL"}, at(4, 23, 30), at(5))
        assert request is not None
        response = await get(RestClient(simulator.url, lambda: SecretStr(simulator.api_key)), request)
        assert '"2026-01-04T23:59:00.000Z"' in response.text
        assert '"2026-01-05T' not in response.text


async def test_response_longer_after_its_request_than_the_limit_is_dropped(
    web_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine slept, or its clock was set: what was requested before must not count as known then."""
    late_us = round(rest_api.REQUEST_SECONDS * 1_000_000) + 1
    times = iter([1_000, 1_000 + late_us, 2_000, 2_000 + late_us - 1])
    monkeypatch.setattr(rest_api, "wall_us", lambda: next(times))
    server = await web_server(http(200, "[]"), http(200, "[]"))
    rest = client(server.url)
    with pytest.raises(RestUnavailable, match="the clock was set, or the machine slept, during the request"):
        await get(rest)
    assert (await get(rest)).sent_us == 2_000
