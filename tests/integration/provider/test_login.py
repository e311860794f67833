"""Trading the API key for a token, against servers that do anything but what they should."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ingestor.core.redaction import redactor
from ingestor.errors import InvalidTokenResponse, TokenRefused, TokenUnavailable
from ingestor.provider.auth import Token
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.http_client import Deadline

from .raw_http_server import Reply, WebServer, http, token_reply

KEY = SecretStr("s3cret-api-key:with+signs")
Serve = Callable[..., Awaitable[WebServer]]


async def trade(url: str, **more: Any) -> Token:
    return await asyncio.to_thread(fetch_token, f"{url}/jwt", KEY, lifetime_seconds=18_000, **more)


async def test_the_key_is_the_user_name_and_the_password_is_empty(web_server: Serve) -> None:
    server = await web_server(token_reply("x" * 9311))
    token = await trade(server.url)
    assert (token.value, token.life_seconds) == ("x" * 9311, 18_000)
    basic = base64.b64encode(f"{KEY.get_secret_value()}:".encode())
    assert server.requests[0].startswith(b"POST /jwt HTTP/1.1\r\n")
    assert b"Authorization: Basic " + basic + b"\r\n" in server.requests[0]


async def test_credentials_of_the_environment_are_not_used(
    web_server: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = await web_server(token_reply())
    await trade(server.url)
    assert base64.b64encode(b"somebody:else") not in server.requests[0]


async def test_what_a_token_holds_is_told_to_the_redactor_before_anyone_sees_it(web_server: Serve) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"email": "analyst@desk", "exp": 9}).encode()).decode().rstrip("=")
    server = await web_server(token_reply(f"head.{claims}.signature-of-it"))
    token = await trade(server.url)
    assert redactor.scrub(f"{token.value} analyst@desk signature-of-it") == "*** *** ***"


@pytest.mark.parametrize(
    ("claims", "feeds"),
    [
        ({"endpoint_paths": ["/real-time/tweet-buzz", 7]}, {"tweet-buzz"}),
        ({"streaming_endpoint_paths": ["tweet-volume"], "endpoint_paths": "all"}, {"tweet-volume"}),
        ({"endpoint_paths": []}, None),
        ({}, None),
    ],
)
async def test_the_claims_say_what_the_key_may_use(web_server: Serve, claims: Any, feeds: set[str] | None) -> None:
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    server = await web_server(token_reply(f"head.{middle}.tail"))
    assert (await trade(server.url)).feeds == feeds


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_told_from_everything_else(web_server: Serve, status: int) -> None:
    server = await web_server(http(status, "{}"))
    with pytest.raises(TokenRefused, match="api_key_file"):
        await trade(server.url)


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        pytest.param(http(500), TokenUnavailable, "HTTP 500", id="500"),
        pytest.param(http(503, Retry_After="7"), TokenUnavailable, "HTTP 503", id="503"),
        pytest.param(http(429), TokenUnavailable, "HTTP 429", id="429"),
        pytest.param(http(302, Location="http://127.0.0.1:9/"), InvalidTokenResponse, "redirect", id="a redirect"),
        pytest.param(http(404), InvalidTokenResponse, "token_path", id="404"),
        pytest.param(http(200, "<html>hello</html>"), InvalidTokenResponse, "18 bytes of something else", id="HTML"),
        pytest.param(http(200, "{}"), InvalidTokenResponse, "is not", id="an empty object"),
        pytest.param(http(200, '{"token": 7}'), InvalidTokenResponse, "is not", id="a number"),
        pytest.param(http(200, '{"token": ""}'), InvalidTokenResponse, "is not", id="an empty token"),
        pytest.param(http(200, '{"token": "a b\\n"}'), InvalidTokenResponse, "is not", id="blanks in it"),
        pytest.param(http(200, "[" * 60_000), InvalidTokenResponse, "is not", id="nested too deeply"),
        pytest.param(http(200, b"\xff\xfe"), InvalidTokenResponse, "is not", id="no text"),
        pytest.param(http(200), InvalidTokenResponse, "is not", id="nothing"),
        pytest.param(http(200, "x" * 70_000), InvalidTokenResponse, "longer than 65536", id="too long"),
        pytest.param(b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\n{", TokenUnavailable, ":", id="cut off"),
        pytest.param(b"what?\r\n\r\n", TokenUnavailable, ":", id="no HTTP"),
        pytest.param(b"", TokenUnavailable, ":", id="closed without a word"),
    ],
)
async def test_anything_but_a_token_is_a_typed_error(
    web_server: Serve, reply: bytes, error: type[TokenUnavailable], words: str
) -> None:
    server = await web_server(reply)
    with pytest.raises(error, match=words) as caught:
        await trade(server.url)
    assert type(caught.value) is error
    assert len(server.requests) == 1


async def test_retry_after_is_passed_on(web_server: Serve) -> None:
    server = await web_server(http(429, Retry_After="17"))
    with pytest.raises(TokenUnavailable) as caught:
        await trade(server.url)
    assert caught.value.retry_after_seconds == 17


async def test_a_server_that_is_not_there_is_unavailable_in_words() -> None:
    with pytest.raises(TokenUnavailable, match="connection refused"):
        await trade("http://127.0.0.1:9")


async def trickle_body(_: bytes) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 X\r\nContent-Type: text/html\r\n\r\n"
    while True:
        yield b" "
        await asyncio.sleep(0.05)


async def trickle_headers(_: bytes) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 X\r\nX-Long: "
    while True:
        yield b"x"
        await asyncio.sleep(0.05)


async def nothing(_: bytes) -> AsyncIterator[bytes]:
    await asyncio.sleep(3600)
    yield b""


@pytest.mark.parametrize("reply", [trickle_body, trickle_headers, nothing])
async def test_a_trickle_does_not_beat_the_deadline_of_the_whole_call(web_server: Serve, reply: Reply) -> None:
    server = await web_server(reply)
    begun = time.monotonic()
    with pytest.raises(TokenUnavailable, match=r"within 0\.4 s"):
        await trade(server.url, timeout_seconds=0.4)
    assert time.monotonic() - begun < 2


async def test_a_slow_answer_within_the_deadline_is_an_answer(web_server: Serve) -> None:
    async def slow(_: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.3)
        yield token_reply("slow.but.sure")

    server = await web_server(slow)
    assert (await trade(server.url, timeout_seconds=5)).value == "slow.but.sure"


async def test_a_call_that_nobody_waits_for_can_be_cut(web_server: Serve) -> None:
    server = await web_server(nothing)
    deadline = Deadline(60)
    call = asyncio.create_task(trade(server.url, deadline=deadline))
    while not server.requests:
        await asyncio.sleep(0.01)
    deadline.cut()
    with pytest.raises(TokenUnavailable):
        await call


async def test_no_error_holds_the_key(web_server: Serve) -> None:
    server = await web_server(http(500), b"", http(403))
    for url in (server.url, server.url, server.url, "http://127.0.0.1:9"):
        with pytest.raises((TokenUnavailable, TokenRefused)) as caught:
            await trade(url)
        shown = "".join(traceback.format_exception(caught.value))
        assert KEY.get_secret_value() not in shown
        assert base64.b64encode(f"{KEY.get_secret_value()}:".encode()).decode() not in shown
