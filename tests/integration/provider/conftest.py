from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pydantic import SecretStr

from ingestor.config.model import Provider, Subscription
from ingestor.provider import connection, group, session
from ingestor.provider import token as tokens
from ingestor.provider.backoff import Backoff
from ingestor.provider.clock import boottime
from ingestor.provider.connection import Connection, Line
from ingestor.provider.dialect import Dialect
from ingestor.provider.token import Token, TokenSupply

from .raw import Memory, RawServer
from .running import Run, Running
from .web import WebServer

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJhcGkiOiJzZWNyZXQifQ.c2lnbmF0dXJlLW9mLXRoaXM"


@pytest.fixture
async def memory() -> Memory:
    return Memory()


@pytest.fixture
def token() -> Token:
    return Token(value=TOKEN, fetched_at=boottime(), life_seconds=3600)


@pytest.fixture
async def raw_server() -> AsyncIterator[Callable[..., Any]]:
    """`await raw_server(talk, **settings)`: a running server that speaks Engine.IO by hand."""
    async with AsyncExitStack() as running:

        async def make(*args: Any, **settings: Any) -> RawServer:
            return await running.enter_async_context(RawServer(*args, **settings))

        yield make


@pytest.fixture
async def web_server() -> AsyncIterator[Callable[..., Any]]:
    """`await web_server(reply, …)`: a running HTTP server that says what it is told to."""
    async with AsyncExitStack() as running:

        async def make(*args: Any, **settings: Any) -> WebServer:
            return await running.enter_async_context(WebServer(*args, **settings))

        yield make


@pytest.fixture
async def scheduler() -> AsyncIterator[AsyncIOScheduler]:
    """The service's, running."""
    made = AsyncIOScheduler()
    made.start()
    yield made
    made.shutdown(wait=False)
    await asyncio.sleep(0)  # it shuts down in the loop's next step


@pytest.fixture
async def make_connection(memory: Memory) -> AsyncIterator[Callable[..., Connection]]:
    """`make_connection(url)`: a connection that hands over to ``memory``; closed at the end."""
    made: list[Connection] = []

    def make(url: str, dialect: Dialect = Dialect.SOCKET_IO_4) -> Connection:
        line = Line(url=url, path="/real-time/crowd-sentiment", params="{}", events=("res", "data"))
        made.append(Connection(line, dialect, memory, memory.append))
        return made[-1]

    yield make
    for one in made:
        await one.close("stopped", "the test is over")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is tried again at once."""
    monkeypatch.setattr(group, "RECONNECT", Backoff(first_seconds=0.05, cap_seconds=0.2))
    monkeypatch.setattr(session, "RESUBSCRIBE", Backoff(first_seconds=0.1, cap_seconds=0.2))
    monkeypatch.setattr(tokens, "UNAVAILABLE", Backoff(first_seconds=0.1, cap_seconds=0.2))
    monkeypatch.setattr(tokens, "REFUSED", Backoff(first_seconds=0.1, cap_seconds=0.2))
    monkeypatch.setattr(connection, "ACK_SECONDS", 0.3)


@pytest.fixture
async def run(scheduler: AsyncIOScheduler, memory: Memory) -> AsyncIterator[Run]:
    """`await run(url, api_key, subscriptions, **provider_settings)`: a supervisor at work."""
    started: list[Running] = []

    async def start(url: str, api_key: str, subscriptions: list[Subscription], **settings: Any) -> Running:
        provider = Provider.model_validate({"url": url, **settings})
        supply = TokenSupply(f"{url}/jwt", SecretStr(api_key), provider.token, scheduler, spacing_seconds=0.05)
        started.append(Running(provider, subscriptions, supply, memory))
        return started[-1]

    yield start
    for one in started:
        await one.stop()
