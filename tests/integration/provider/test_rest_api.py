"""REST answers, from servers that do anything but what they should: what is said of each, and how long we wait then."""

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
from ingestor.simulator import Simulator
from tests.support.repairs import CROWD, at

from .raw_http_server import Reply as Served
from .raw_http_server import WebServer, http

QUESTION = RestRequest(path=CROWD, params={"ticker": "A&B"})
KEY = SecretStr("s3cret-api-key")
Serve = Callable[..., Awaitable[WebServer]]


def asking(url: str) -> RestClient:
    return RestClient(url, lambda: KEY)


async def get(one: RestClient, question: RestRequest = QUESTION) -> RestResponse:
    return await asyncio.to_thread(one.get, question)


async def test_an_answer_is_as_old_as_its_question_and_the_next_one_waits(web_server: Serve) -> None:
    server = await web_server(http(200, '[{"ts": "…"}]'))
    one = asking(server.url)
    before = time.time_ns() // 1000
    reply = await get(one)
    assert reply.text == '[{"ts": "…"}]'
    assert before <= reply.sent_us <= time.time_ns() // 1000
    assert 0 < one.pause_seconds <= rest_api.SPACING_SECONDS
    assert server.requests[0].startswith(b"GET /real-time/crowd-sentiment?ticker=A%26B HTTP/1.1\r\n")
    assert b"Authorization: Basic czNjcmV0LWFwaS1rZXk6\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("reply", "error", "message", "pause_seconds"),
    [
        pytest.param(http(400, '{"type": "t", "message": "m"}'), RestRefused, "HTTP 400: t: m", 2, id="400"),
        pytest.param(http(404, "<html>"), RestRefused, "HTTP 404", 2, id="404"),
        pytest.param(http(401), TokenRefused, "the API key is not accepted; check provider.", 15, id="401"),
        pytest.param(http(500, '{"message": "s3cret-api-key"}'), RestUnavailable, "HTTP 500: ", 15, id="500"),
        pytest.param(http(429, Retry_After="600"), RestUnavailable, "HTTP 429", 600, id="asked to wait"),
        pytest.param(http(302, Location="http://elsewhere"), RestUnavailable, "HTTP 302", 15, id="not followed"),
        pytest.param(http(200, b"[\xff]"), RestUnavailable, "the answer is not UTF-8", 15, id="not UTF-8"),
        pytest.param(b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n[]", RestUnavailable, "Incomplete", 15, id="cut"),
    ],
)  # fmt: skip
async def test_what_is_no_answer_says_what_it_is(
    web_server: Serve, reply: bytes, error: type[IngestorError], message: str, pause_seconds: float
) -> None:
    server = await web_server(reply)
    one = asking(server.url)
    with pytest.raises(error) as raised:
        await get(one)
    assert str(raised.value).startswith("/real-time/crowd-sentiment: ")
    assert message in str(raised.value)
    assert pause_seconds / 2 - 1 < one.pause_seconds <= pause_seconds


async def test_what_is_larger_than_a_daemon_can_hold_is_not_read(
    web_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_api, "MAX_RESPONSE_BYTES", 100_000)
    server = await web_server(http(200, "x" * 1_000_000))
    with pytest.raises(ResponseTooLarge, match="longer than 100000 bytes"):
        await get(asking(server.url))


async def test_failures_in_a_row_are_followed_by_ever_longer_pauses(web_server: Serve) -> None:
    server = await web_server(*[http(503)] * 4, http(200, "[]"), http(503))
    one, pauses = asking(server.url), []
    for _ in range(6):
        try:
            await get(one)
        except RestUnavailable:
            pass
        pauses.append(one.pause_seconds)
        one._not_before = 0.0
    assert pauses[3] > 59 > 15 >= pauses[0]
    assert pauses[4] <= 2
    assert pauses[5] <= 15


async def test_a_question_under_way_can_be_cut_and_none_follows(web_server: Serve) -> None:
    asked = threading.Event()

    async def never(_: bytes) -> AsyncIterator[bytes]:
        asked.set()
        await asyncio.sleep(60)
        yield b""

    reply: Served = never
    server = await web_server(reply)
    one = asking(server.url)
    attempt = asyncio.create_task(get(one))
    await asyncio.to_thread(asked.wait, 5)
    began = time.monotonic()
    one.cancel()
    for waited in (attempt, get(one)):
        with pytest.raises(RestUnavailable):
            await waited
    assert time.monotonic() - began < 5
    assert len(server.requests) == 1


async def test_the_history_of_every_endpoint_is_asked_for_as_the_provider_wants_it(simulator: Simulator) -> None:
    for path in ("/real-time/crowd-sentiment", "crowd-sentiment-chart-data", "user-sentiment"):
        question = history_request(path, {"ticker": "AAPL"}, at(4, 23, 30), at(5))
        assert question is not None
        reply = await get(RestClient(simulator.url, lambda: SecretStr(simulator.api_key)), question)
        assert '"2026-01-04T23:59:00.000Z"' in reply.text
        assert '"2026-01-05T' not in reply.text
