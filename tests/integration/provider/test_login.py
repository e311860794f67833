"""Exchanging the API key for a token, against servers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ingestor.core.clock import boottime
from ingestor.core.redaction import redactor
from ingestor.errors import InvalidTokenResponse, TokenRefused, TokenUnavailable
from ingestor.provider.auth import Token
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.http_client import HttpRequest, RequestFailed

from .raw_http_server import RawHttpServer, Reply, http, token_reply, until

KEY = SecretStr("s3cret-api-key:with+signs")
Serve = Callable[..., Awaitable[RawHttpServer]]


async def login(url: str, **options: Any) -> Token:
    return await asyncio.to_thread(fetch_token, f"{url}/jwt", KEY, lifetime_seconds=18_000, **options)


async def test_login_sends_key_as_user_name_with_empty_password(web_server: Serve) -> None:
    server = await web_server(token_reply("x" * 9311))
    token = await login(server.url)
    assert (token.value, token.life_seconds) == ("x" * 9311, 18_000)
    basic = base64.b64encode(f"{KEY.get_secret_value()}:".encode())
    assert server.requests[0].startswith(b"POST /jwt HTTP/1.1\r\n")
    assert b"Authorization: Basic " + basic + b"\r\n" in server.requests[0]


async def test_life_of_a_token_counts_from_its_request(web_server: Serve) -> None:
    async def slowly(_: bytes) -> AsyncIterator[bytes]:
        came_at.append(boottime())
        await asyncio.sleep(0.3)
        yield token_reply()

    came_at: list[float] = []
    server, before = await web_server(slowly), boottime()
    token = await login(server.url)
    assert before <= token.requested_at <= came_at[0]
    assert token.expires_at == token.requested_at + 18_000


async def test_login_ignores_netrc_and_proxy_variables(
    web_server: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = await web_server(token_reply())
    await login(server.url)
    assert base64.b64encode(b"somebody:else") not in server.requests[0]


async def test_login_registers_secrets_of_token_for_redaction(web_server: Serve) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"email": "analyst@desk", "exp": 9}).encode()).decode().rstrip("=")
    server = await web_server(token_reply(f"head.{claims}.signature-of-it"))
    token = await login(server.url)
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
async def test_token_takes_feeds_from_claims(web_server: Serve, claims: Any, feeds: set[str] | None) -> None:
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    server = await web_server(token_reply(f"head.{middle}.tail"))
    assert (await login(server.url)).feeds == feeds


@pytest.mark.parametrize("status", [401, 403])
async def test_login_raises_token_refused_for_401_and_403(web_server: Serve, status: int) -> None:
    server = await web_server(http(status, "{}"))
    with pytest.raises(TokenRefused, match="api_key_file"):
        await login(server.url)


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        pytest.param(http(500), TokenUnavailable, "HTTP 500", id="500"),
        pytest.param(http(503, Retry_After="7"), TokenUnavailable, "HTTP 503", id="503"),
        pytest.param(http(429), TokenUnavailable, "HTTP 429", id="429"),
        pytest.param(http(302, Location="http://127.0.0.1:9/"), InvalidTokenResponse, "redirects", id="redirect"),
        pytest.param(http(404), InvalidTokenResponse, "token_path", id="404"),
        pytest.param(http(200, "<html>hello</html>"), InvalidTokenResponse, "18 bytes", id="HTML"),
        pytest.param(http(200, "{}"), InvalidTokenResponse, "is not a JSON object", id="empty object"),
        pytest.param(http(200, '{"token": 7}'), InvalidTokenResponse, "is not", id="number"),
        pytest.param(http(200, '{"token": ""}'), InvalidTokenResponse, "is not", id="empty token"),
        pytest.param(http(200, '{"token": "a b\\n"}'), InvalidTokenResponse, "is not", id="token with blanks"),
        pytest.param(http(200, "[" * 60_000), InvalidTokenResponse, "is not", id="nested too deeply"),
        pytest.param(http(200, b"\xff\xfe"), InvalidTokenResponse, "is not", id="not UTF-8"),
        pytest.param(http(200), InvalidTokenResponse, "is not", id="empty body"),
        pytest.param(http(200, "x" * 70_000), InvalidTokenResponse, "longer than 65536", id="too long"),
        pytest.param(b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\n{", TokenUnavailable, ":", id="truncated body"),
        pytest.param(b"what?\r\n\r\n", TokenUnavailable, ":", id="not HTTP"),
        pytest.param(b"", TokenUnavailable, ":", id="connection closed"),
    ],
)
async def test_login_raises_typed_error_for_other_responses(
    web_server: Serve, reply: bytes, error: type[TokenUnavailable], words: str
) -> None:
    server = await web_server(reply)
    with pytest.raises(error, match=words) as caught:
        await login(server.url)
    assert type(caught.value) is error
    assert len(server.requests) == 1


async def test_error_carries_retry_after(web_server: Serve) -> None:
    server = await web_server(http(429, Retry_After="17"))
    with pytest.raises(TokenUnavailable) as caught:
        await login(server.url)
    assert caught.value.retry_after_seconds == 17


async def test_unreachable_server_raises_token_unavailable() -> None:
    with pytest.raises(TokenUnavailable, match="connection refused"):
        await login("http://127.0.0.1:9")


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
async def test_trickling_response_ends_at_deadline(web_server: Serve, reply: Reply) -> None:
    server = await web_server(reply)
    started = time.monotonic()
    with pytest.raises(TokenUnavailable, match=r"within 0\.4 s"):
        await login(server.url, timeout_seconds=0.4)
    assert time.monotonic() - started < 10
    await until(lambda: not [thread for thread in threading.enumerate() if thread.name == "http request"])


async def test_slow_response_within_deadline_is_accepted(web_server: Serve) -> None:
    async def slow(_: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.3)
        yield token_reply("slow.but.sure")

    server = await web_server(slow)
    assert (await login(server.url, timeout_seconds=5)).value == "slow.but.sure"


async def test_cancelled_request_fails_at_once_and_its_thread_ends(web_server: Serve) -> None:
    server = await web_server(nothing)
    request = HttpRequest(method="GET", url=server.url, timeout_seconds=4, max_bytes=1000)
    sending = asyncio.create_task(asyncio.to_thread(request.send))
    await until(lambda: server.requests)
    started = time.monotonic()
    request.cancel()
    with pytest.raises(RequestFailed, match="cancelled"):
        await sending
    assert time.monotonic() - started < 3.5
    await until(lambda: not [thread for thread in threading.enumerate() if thread.name == "http request"], 10)


async def test_errors_do_not_contain_the_key(web_server: Serve) -> None:
    server = await web_server(http(500), b"", http(403))
    for url in (server.url, server.url, server.url, "http://127.0.0.1:9"):
        with pytest.raises((TokenUnavailable, TokenRefused)) as caught:
            await login(url)
        text = "".join(traceback.format_exception(caught.value))
        assert KEY.get_secret_value() not in text
        assert base64.b64encode(f"{KEY.get_secret_value()}:".encode()).decode() not in text
