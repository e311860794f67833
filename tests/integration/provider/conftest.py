from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pydantic import SecretStr

from ingestor.config import SecretFile
from ingestor.provider.clock import boottime
from ingestor.provider.connection import Connection, Line
from ingestor.provider.dialect import Dialect
from ingestor.provider.token import Token, TokenSupply

from .raw import Memory, RawServer
from .web import WebServer

KEY = SecretStr("key-of-the-supply")
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
async def make_supply(scheduler: AsyncIOScheduler) -> AsyncIterator[Callable[..., TokenSupply]]:
    """`make_supply(server)`: a supply that logs in there; closed at the end."""
    made: list[TokenSupply] = []

    def make(
        server: WebServer, *, spacing_seconds: float = 0.05, timeout: float = 5, key_file: SecretFile | None = None
    ) -> TokenSupply:
        life = SimpleNamespace(lifetime=18_000.0, renew_before=600.0, timeout=timeout)
        url = f"{server.url}/jwt"
        made.append(TokenSupply(url, KEY, life, scheduler, spacing_seconds=spacing_seconds, key_file=key_file))
        return made[-1]

    yield make
    for supply in made:
        await supply.close()


@pytest.fixture
async def make_connection(memory: Memory) -> AsyncIterator[Callable[..., Connection]]:
    """`make_connection(url)`: a connection that hands over to ``memory``; closed at the end."""
    made: list[Connection] = []

    def make(url: str, dialect: Dialect = Dialect.SOCKET_IO_4) -> Connection:
        line = Line(url=url, path="/real-time/crowd-sentiment", params="{}", events=("res", "data"))
        made.append(Connection(line, dialect, memory, memory.append))
        return made[-1]

    yield make
    for connection in made:
        await connection.close("stopped", "the test is over")
