"""The token that everybody uses, against a real server and a real scheduler."""

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
from ingestor.provider.auth import token_source as supply_module
from ingestor.provider.auth.token_source import KEPT_TOKENS

from .conftest import KEY
from .raw_http_server import WebServer, http, token_reply, until

Serve = Callable[..., Awaitable[WebServer]]
Make = Callable[..., TokenSource]
DATE = "Mon, 05 Jan 2026 14:30"


def jwt(life_seconds: float, number: int = 0) -> str:
    claims = {"iat": 1000, "exp": 1000 + life_seconds, "number": number}
    return "h." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".signature"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply_module, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.4, cap_seconds=0.4))
    monkeypatch.setattr(supply_module, "REFUSED_BACKOFF", Backoff(first_seconds=0.4, cap_seconds=0.4))


@pytest.fixture
def blackhole() -> Iterator[str]:
    """The URL of a server whose queue is full: the kernel answers no further connect."""
    with socket.socket() as server, socket.socket() as first:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        first.connect(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def logins() -> list[threading.Thread]:
    """The threads in which a login is under way."""
    return [thread for thread in threading.enumerate() if thread.name == "token login"]


async def numbered(number: list[int], life_seconds: float) -> AsyncIterator[bytes]:
    number[0] += 1
    yield token_reply(jwt(life_seconds, number[0]))


async def test_all_who_ask_share_one_login(web_server: Serve, make_supply: Make) -> None:
    server = await web_server(token_reply())
    supply = make_supply(server)
    tokens = await asyncio.gather(*(supply.get() for _ in range(10)))
    assert len({token.value for token in tokens}) == 1
    assert await supply.get() == tokens[0] == supply.current
    assert len(server.requests) == 1


async def test_two_logins_are_never_closer_than_the_spacing(web_server: Serve, make_supply: Make) -> None:
    server = await web_server(token_reply())
    supply = make_supply(server, spacing_seconds=0.3)
    for _ in range(3):
        await supply.get(fresh=True)
    assert min(later - sooner for sooner, later in pairwise(server.times)) >= 0.3


async def test_not_even_when_everything_goes_wrong_at_once(
    web_server: Serve, make_supply: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNAVAILABLE_BACKOFF", "REFUSED_BACKOFF"):
        monkeypatch.setattr(supply_module, name, Backoff(first_seconds=0.001, cap_seconds=0.001))
    replies = [token_reply(), http(401), http(429, Retry_After="0"), http(200, "{}"), b"", token_reply(), http(403)]
    server = await web_server(*replies)
    supply = make_supply(server, spacing_seconds=0.15)
    for number in range(len(replies)):
        if supply.current:
            supply.discard(supply.current)
        await asyncio.gather(*(supply.get(fresh=fresh) for fresh in (True, False)), return_exceptions=True)
        supply.api_key.replace(SecretStr(f"key-number-{number}"), None)
    assert len(server.times) >= len(replies)
    assert min(later - sooner for sooner, later in pairwise(server.times)) >= 0.15


async def test_after_a_failure_the_next_login_waits_and_everybody_is_told(web_server: Serve, make_supply: Make) -> None:
    server = await web_server(http(503), token_reply())
    supply = make_supply(server)
    told: list[tuple[IngestorError, float]] = []
    supply.on_failed.append(lambda error, wait: told.append((error, wait)))
    outcomes = await asyncio.gather(supply.get(), supply.get(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [TokenUnavailable, TokenUnavailable]
    assert supply.status().last_error
    await supply.get()
    assert server.times[1] - server.times[0] >= 0.2
    assert len(told) == 1
    assert told[0][1] >= 0.2
    assert dict(supply.status().logins) == {"unavailable": 1, "ok": 1}
    assert supply.status().last_error == ""


@pytest.mark.parametrize("asked", ["1", f"{DATE}:07 GMT"])
async def test_retry_after_is_waited_for(web_server: Serve, make_supply: Make, asked: str) -> None:
    server = await web_server(http(429, Retry_After=asked, Date=f"{DATE}:06 GMT"), token_reply())
    supply = make_supply(server)
    with pytest.raises(TokenUnavailable):
        await supply.get()
    await supply.get()
    assert server.times[1] - server.times[0] >= 1


async def test_a_refused_key_is_counted_as_such(web_server: Serve, make_supply: Make) -> None:
    supply = make_supply(await web_server(http(403), http(200, "{}")))
    for _ in range(2):
        with pytest.raises((TokenRefused, TokenUnavailable)):
            await supply.get()
    assert dict(supply.status().logins) == {"refused": 1, "nonsense": 1}


async def test_a_token_is_renewed_before_it_ends(web_server: Serve, make_supply: Make) -> None:
    count = [0]
    server = await web_server(lambda _: numbered(count, 0.6))
    supply = make_supply(server)
    seen: list[Token] = []
    supply.on_renewed.append(seen.append)
    first = await supply.get()
    await until(lambda: len(seen) >= 3)
    assert len({token.value for token in seen}) == len(seen)
    assert seen[1].fetched_at < first.expires_at, "renewed before the end"
    assert supply.current == seen[-1]


async def test_a_renewal_that_fails_is_tried_again_while_the_old_token_lasts(
    web_server: Serve, make_supply: Make
) -> None:
    server = await web_server(token_reply(jwt(1.0)), http(500), token_reply(jwt(3600, 2)))
    supply = make_supply(server)
    first = await supply.get()
    await until(lambda: supply.status().logins.get("unavailable"))
    assert supply.current == first
    await until(lambda: supply.current != first)
    assert supply.status().life_seconds == 3600


async def test_a_token_that_has_ended_is_not_handed_out(web_server: Serve, make_supply: Make) -> None:
    server = await web_server(token_reply(jwt(0.2)), http(500), token_reply(jwt(3600, 2)))
    supply = make_supply(server)
    first = await supply.get()
    await until(lambda: len(server.requests) >= 2)
    await asyncio.sleep(0.2)
    assert (await supply.get()) != first


async def test_a_discarded_token_is_replaced_once_for_all_who_were_refused_with_it(
    web_server: Serve, make_supply: Make
) -> None:
    count = [0]
    server = await web_server(lambda _: numbered(count, 3600))
    supply = make_supply(server)
    first = await supply.get()
    supply.discard(first)
    assert supply.current is None
    second = await supply.get()
    supply.discard(first)
    assert await supply.get() == second != first
    assert len(server.requests) == 2


async def test_tokens_that_are_refused_one_after_the_other_are_fetched_ever_more_slowly(
    web_server: Serve, make_supply: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply_module, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.2, cap_seconds=10))
    count = [0]
    server = await web_server(lambda _: numbered(count, 3600))
    supply = make_supply(server)
    for _ in range(4):
        supply.discard(await supply.get())
    gaps = [later - sooner for sooner, later in pairwise(server.times)]
    assert gaps[0] >= 0.1
    assert gaps[2] >= 0.4


async def test_closing_does_not_wait_for_a_login_that_hangs(
    web_server: Serve, make_supply: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing(_: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    server = await web_server(nothing)
    supply = make_supply(server, timeout=60)
    asking = asyncio.create_task(supply.get())
    await until(lambda: server.requests)
    begun = time.monotonic()
    await supply.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: not logins())
    assert time.monotonic() - begun < 2
    await asyncio.sleep(0)
    assert caplog.records == [], "what nobody waits for any more is no error"


def test_the_end_of_the_process_does_not_wait_for_a_connect_into_nothing(blackhole: str) -> None:
    async def begin_a_login_and_stop() -> None:
        life = SimpleNamespace(lifetime=18_000.0, renew_before=600.0, timeout=1.5)
        supply = TokenSource(f"{blackhole}/jwt", KEY, life, None)
        asking = asyncio.create_task(supply.get())
        await until(logins)
        await supply.close()
        with pytest.raises(asyncio.CancelledError):
            await asking

    begun = time.monotonic()
    asyncio.run(begin_a_login_and_stop())
    assert time.monotonic() - begun < 1
    (login,) = logins()
    assert login.daemon
    login.join(timeout=5)
    assert not login.is_alive(), "it ends by itself, and minds no loop that has ended"


async def test_status_without_token_has_no_times(web_server: Serve, make_supply: Make) -> None:
    supply = make_supply(await web_server(token_reply()))
    status = supply.status()
    assert (status.expires_in_seconds, status.renews_in_seconds, status.life_seconds) == (None, None, None)


async def test_old_tokens_are_forgotten_but_what_others_hold_stays_masked(web_server: Serve, make_supply: Make) -> None:
    redactor.add(KEY.get_secret_value())
    count = [0]

    async def opaque(_: bytes) -> AsyncIterator[bytes]:
        count[0] += 1
        yield token_reply(f"opaque-token-{count[0]:03}")

    supply = make_supply(await web_server(opaque), spacing_seconds=0)
    for _ in range(KEPT_TOKENS + 1):
        await supply.get(fresh=True)
    assert redactor.scrub("opaque-token-001 opaque-token-002") == "opaque-token-001 ***"
    assert redactor.scrub(KEY.get_secret_value()) == "***"
    redactor.forget(KEY.get_secret_value())
