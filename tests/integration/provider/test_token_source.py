"""The token source against a real server, with a real scheduler."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from ingestor.core.backoff import Backoff
from ingestor.core.redaction import redactor
from ingestor.errors import IngestorError, TokenRefused, TokenUnavailable
from ingestor.provider.auth import Token, TokenSource
from ingestor.provider.auth import token_source as token_source_module
from ingestor.provider.auth.token_source import KEPT_TOKENS

from .conftest import KEY
from .raw_http_server import RawHttpServer, http, token_reply, until

Serve = Callable[..., Awaitable[RawHttpServer]]
Make = Callable[..., TokenSource]
DATE = "Mon, 05 Jan 2026 14:30"


def jwt(life_seconds: float, number: int = 0) -> str:
    claims = {"iat": 1000, "exp": 1000 + life_seconds, "number": number}
    return "h." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".signature"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_source_module, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.4, cap_seconds=0.4))
    monkeypatch.setattr(token_source_module, "REFUSED_BACKOFF", Backoff(first_seconds=0.4, cap_seconds=0.4))


@pytest.fixture
def blackhole() -> Iterator[str]:
    """Yield the URL of a server whose backlog is full: the kernel answers no further connect."""
    with socket.socket() as server, socket.socket() as first:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        first.connect(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def logins() -> list[threading.Thread]:
    """Return the threads of logins in progress."""
    return [thread for thread in threading.enumerate() if thread.name == "token login"]


async def numbered(number: list[int], life_seconds: float) -> AsyncIterator[bytes]:
    number[0] += 1
    yield token_reply(jwt(life_seconds, number[0]))


async def test_concurrent_callers_share_one_login(web_server: Serve, make_token_source: Make) -> None:
    server = await web_server(token_reply())
    source = make_token_source(server)
    tokens = await asyncio.gather(*(source.get() for _ in range(10)))
    assert len({token.value for token in tokens}) == 1
    assert await source.get() == tokens[0] == source.current
    assert len(server.requests) == 1


async def test_logins_keep_the_spacing(web_server: Serve, make_token_source: Make) -> None:
    server = await web_server(token_reply())
    source = make_token_source(server, spacing_seconds=0.3)
    for _ in range(3):
        await source.get(fresh=True)
    assert min(later - earlier for earlier, later in pairwise(server.times)) >= 0.3


async def test_logins_keep_the_spacing_whatever_fails(
    web_server: Serve, make_token_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNAVAILABLE_BACKOFF", "REFUSED_BACKOFF"):
        monkeypatch.setattr(token_source_module, name, Backoff(first_seconds=0.001, cap_seconds=0.001))
    replies = [token_reply(), http(401), http(429, Retry_After="0"), http(200, "{}"), b"", token_reply(), http(403)]
    server = await web_server(*replies)
    source = make_token_source(server, spacing_seconds=0.15)
    for number in range(len(replies)):
        if source.current:
            source.discard(source.current)
        await asyncio.gather(*(source.get(fresh=fresh) for fresh in (True, False)), return_exceptions=True)
        source.api_key.replace(SecretStr(f"key-number-{number}"), None)
    assert len(server.times) >= len(replies)
    assert min(later - earlier for earlier, later in pairwise(server.times)) >= 0.15


async def test_failure_delays_next_login_and_calls_listeners(web_server: Serve, make_token_source: Make) -> None:
    server = await web_server(http(503), token_reply())
    source = make_token_source(server)
    failures: list[tuple[IngestorError, float]] = []
    source.on_failed.append(lambda error, wait: failures.append((error, wait)))
    outcomes = await asyncio.gather(source.get(), source.get(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [TokenUnavailable, TokenUnavailable]
    assert source.status().last_error
    await source.get()
    assert server.times[1] - server.times[0] >= 0.2
    assert len(failures) == 1
    assert failures[0][1] >= 0.2
    assert dict(source.status().logins) == {"unavailable": 1, "ok": 1}
    assert source.status().last_error == ""


@pytest.mark.parametrize("retry_after", ["1", f"{DATE}:07 GMT"])
async def test_login_waits_for_retry_after(web_server: Serve, make_token_source: Make, retry_after: str) -> None:
    server = await web_server(http(429, Retry_After=retry_after, Date=f"{DATE}:06 GMT"), token_reply())
    source = make_token_source(server)
    with pytest.raises(TokenUnavailable):
        await source.get()
    await source.get()
    assert server.times[1] - server.times[0] >= 1


async def test_logins_are_counted_by_outcome(web_server: Serve, make_token_source: Make) -> None:
    source = make_token_source(await web_server(http(403), http(200, "{}")))
    assert not source.status().key_refused
    for refused in (True, False):  # the second response is no token, and says nothing of the key
        with pytest.raises((TokenRefused, TokenUnavailable)):
            await source.get()
        assert source.status().key_refused is refused
    assert dict(source.status().logins) == {"refused": 1, "nonsense": 1}


async def test_token_is_renewed_before_it_expires(web_server: Serve, make_token_source: Make) -> None:
    count = [0]
    server = await web_server(lambda _: numbered(count, 0.6))
    source = make_token_source(server)
    renewed: list[Token] = []
    source.on_renewed.append(renewed.append)
    await source.get()
    status = source.status()
    assert status.renews_in_seconds and status.expires_in_seconds
    assert status.renews_in_seconds < status.expires_in_seconds
    await until(lambda: len(renewed) >= 3)
    assert len({token.value for token in renewed}) == len(renewed)
    assert source.current == renewed[-1]


async def test_failed_renewal_is_retried_while_old_token_is_valid(web_server: Serve, make_token_source: Make) -> None:
    server = await web_server(token_reply(jwt(1.0)), http(500), token_reply(jwt(3600, 2)))
    source = make_token_source(server)
    first = await source.get()
    await until(lambda: source.status().logins.get("unavailable"))
    assert source.current == first
    await until(lambda: source.current != first)
    assert source.status().life_seconds == 3600


async def test_expired_token_is_not_returned(web_server: Serve, make_token_source: Make) -> None:
    server = await web_server(token_reply(jwt(0.2)), http(500), token_reply(jwt(3600, 2)))
    source = make_token_source(server)
    first = await source.get()
    await until(lambda: len(server.requests) >= 2)
    await asyncio.sleep(0.2)
    assert (await source.get()) != first


async def test_discarded_token_is_replaced_once(web_server: Serve, make_token_source: Make) -> None:
    count = [0]
    server = await web_server(lambda _: numbered(count, 3600))
    source = make_token_source(server)
    first = await source.get()
    source.discard(first)
    assert source.current is None
    second = await source.get()
    source.discard(first)
    assert await source.get() == second != first
    assert len(server.requests) == 2


async def test_rapid_rejections_lengthen_the_delay(
    web_server: Serve, make_token_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_source_module, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.2, cap_seconds=10))
    count = [0]
    server = await web_server(lambda _: numbered(count, 3600))
    source = make_token_source(server)
    for _ in range(4):
        source.discard(await source.get())
    gaps = [later - earlier for earlier, later in pairwise(server.times)]
    assert gaps[0] >= 0.1
    assert gaps[2] >= 0.4


async def test_rejection_right_after_a_slow_answer_is_rapid(
    web_server: Serve, make_token_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_source_module, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.6, cap_seconds=10))
    monkeypatch.setattr(token_source_module, "RAPID_REJECTION_SECONDS", 0.2)

    async def slowly(_: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.25)
        yield token_reply(jwt(3600))

    server = await web_server(slowly, token_reply(jwt(3600, 2)))
    source = make_token_source(server)
    source.discard(await source.get())
    await source.get()
    assert server.times[1] - server.times[0] >= 0.25 + 0.3


async def test_close_abandons_hanging_login_whose_token_has_no_effect(
    web_server: Serve, make_token_source: Make, caplog: pytest.LogCaptureFixture
) -> None:
    released = asyncio.Event()

    async def hang(_: bytes) -> AsyncIterator[bytes]:
        await released.wait()
        yield token_reply()

    server = await web_server(hang)
    source = make_token_source(server, timeout=60)
    login = asyncio.create_task(source.get())
    await until(lambda: server.requests)
    started = time.monotonic()
    await source.close()
    with pytest.raises(asyncio.CancelledError):
        await login
    assert time.monotonic() - started < 10
    released.set()
    await until(lambda: not logins())
    await asyncio.sleep(0)
    assert source.current is None
    assert source.status().logins == {}
    assert caplog.records == [], "an abandoned login is no error"


def test_process_exit_does_not_wait_for_hanging_connect(blackhole: str) -> None:
    async def start_login_and_stop() -> None:
        life = SimpleNamespace(lifetime=18_000.0, renew_before=600.0, timeout=4)
        source = TokenSource(f"{blackhole}/jwt", KEY, life, None)
        login = asyncio.create_task(source.get())
        await until(logins)
        await source.close()
        with pytest.raises(asyncio.CancelledError):
            await login

    started = time.monotonic()
    asyncio.run(start_login_and_stop())
    assert time.monotonic() - started < 3.5
    (login,) = logins()
    assert login.daemon
    login.join(timeout=10)
    assert not login.is_alive(), "the thread ends by itself, after its event loop"


async def test_status_without_token_has_no_times(web_server: Serve, make_token_source: Make) -> None:
    source = make_token_source(await web_server(token_reply()))
    status = source.status()
    assert (status.expires_in_seconds, status.renews_in_seconds, status.life_seconds) == (None, None, None)


async def test_secrets_of_old_tokens_are_unmasked_unless_shared(web_server: Serve, make_token_source: Make) -> None:
    redactor.add(KEY.get_secret_value())
    count = [0]

    async def opaque(_: bytes) -> AsyncIterator[bytes]:
        count[0] += 1
        yield token_reply(f"opaque-token-{count[0]:03}")

    source = make_token_source(await web_server(opaque), spacing_seconds=0)
    for _ in range(KEPT_TOKENS + 1):
        await source.get(fresh=True)
    assert redactor.scrub("opaque-token-001 opaque-token-002") == "opaque-token-001 ***"
    assert redactor.scrub(KEY.get_secret_value()) == "***"
    redactor.remove(KEY.get_secret_value())
