from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from ingestor.config.model import ProviderConfig, Subscription
from ingestor.config.secret_file import SecretFile
from ingestor.core.backoff import Backoff
from ingestor.core.clock import boottime
from ingestor.core.permit import Permit
from ingestor.daemon.scheduler import JobScheduler
from ingestor.provider.auth import Token, TokenSource, token_source
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.socket import connection as connection_module
from ingestor.provider.socket.connection import Connection, ConnectionSettings
from ingestor.provider.socket.protocol import ProtocolVersion, probe
from ingestor.provider.subscriptions import connection_group, session
from ingestor.provider.transport import make_tls_context

from .raw_engineio_server import Memory, RawServer
from .raw_http_server import RawHttpServer
from .raw_socketio_09_server import RawSocketIo09Server
from .running_supervisor import RunningSupervisor, StartSupervisor

WAYS = ("token", "probe", "socket")
Reach = Callable[..., Awaitable[object]]
KEY = SecretStr("key-of-the-source")
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJhcGkiOiJzZWNyZXQifQ.c2lnbmF0dXJlLW9mLXRoaXM"


@pytest.fixture
async def memory() -> Memory:
    return Memory()


@pytest.fixture
def token() -> Token:
    return Token(value=TOKEN, requested_at=boottime(), life_seconds=3600)


@pytest.fixture
async def raw_server() -> AsyncIterator[Callable[..., Any]]:
    """`await raw_server(talk, **settings)`: a running server that sends hand-written Engine.IO."""
    async with AsyncExitStack() as running:

        async def make(*args: Any, **settings: Any) -> RawServer:
            return await running.enter_async_context(RawServer(*args, **settings))

        yield make


@pytest.fixture
async def raw_09_server() -> AsyncIterator[Callable[..., Any]]:
    """`await raw_09_server(talk, **settings)`: a running server that sends hand-written Socket.IO 0.9."""
    async with AsyncExitStack() as running:

        async def make(*args: Any, **settings: Any) -> RawSocketIo09Server:
            return await running.enter_async_context(RawSocketIo09Server(*args, **settings))

        yield make


@pytest.fixture
async def web_server() -> AsyncIterator[Callable[..., Any]]:
    """`await web_server(reply, …)`: a running HTTP server that sends these replies."""
    async with AsyncExitStack() as running:

        async def make(*args: Any, **settings: Any) -> RawHttpServer:
            return await running.enter_async_context(RawHttpServer(*args, **settings))

        yield make


@pytest.fixture
def reach(certificate: Path, memory: Memory, token: Token) -> Reach:
    """`await reach("probe", url)`: contact the provider once, in one of the three ways of WAYS."""

    async def contact(way: str, url: str, proxy: SecretStr | None = None, ca_file: Path | None = certificate) -> object:
        if way == "token":
            options: dict[str, Any] = {"lifetime_seconds": 60, "ca_file": ca_file, "proxy": proxy}
            return await asyncio.to_thread(fetch_token, f"{url}/jwt", KEY, **options)
        tls_context = make_tls_context(ca_file) if url.startswith("https") else None
        if way == "probe":
            return await probe(url, TOKEN, tls_context, proxy)
        settings = ConnectionSettings(
            url=url, path="/p", params="{}", events=("res",), tls_context=tls_context, proxy=proxy
        )
        connection = Connection(settings, ProtocolVersion.SOCKET_IO_4, memory, memory.append)
        await connection.open(token)
        return await connection.close("stopped", "reached")

    return contact


@pytest.fixture
async def scheduler() -> AsyncIterator[JobScheduler]:
    """The daemon's scheduler, running."""
    scheduler = JobScheduler()
    scheduler.start()
    yield scheduler
    scheduler.shutdown()
    await asyncio.sleep(0)  # it shuts down in the loop's next step


@pytest.fixture
async def make_token_source(scheduler: JobScheduler) -> AsyncIterator[Callable[..., TokenSource]]:
    """`make_token_source(server)`: a source that logs in there; closed at the end."""
    made: list[TokenSource] = []

    def make(
        server: RawHttpServer, *, spacing_seconds: float = 0.05, timeout: float = 5, key_file: SecretFile | None = None
    ) -> TokenSource:
        life = SimpleNamespace(lifetime=18_000.0, renew_before=600.0, timeout=timeout)
        url = f"{server.url}/jwt"
        made.append(TokenSource(url, KEY, life, scheduler.at, spacing_seconds=spacing_seconds, key_file=key_file))
        return made[-1]

    yield make
    for source in made:
        await source.close()


@pytest.fixture
async def make_connection(memory: Memory) -> AsyncIterator[Callable[..., Connection]]:
    """`make_connection(url)`: a connection that appends to ``memory``; closed at the end."""
    made: list[Connection] = []

    def make(url: str, version: ProtocolVersion = ProtocolVersion.SOCKET_IO_4) -> Connection:
        settings = ConnectionSettings(url=url, path="/real-time/crowd-sentiment", params="{}", events=("res", "data"))
        made.append(Connection(settings, version, memory, memory.append))
        return made[-1]

    yield make
    for connection in made:
        await connection.close("stopped", "the test is over")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every retry and timeout short."""
    monkeypatch.setattr(connection_group, "RECONNECT", Backoff(first_seconds=0.05, cap_seconds=0.2))
    monkeypatch.setattr(connection_group, "RECONNECT_AFTER_RESTART", Backoff(first_seconds=0.05, cap_seconds=0.2))
    monkeypatch.setattr(session, "RESUBSCRIBE", Backoff(first_seconds=0.1, cap_seconds=0.2))
    monkeypatch.setattr(token_source, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.2))
    monkeypatch.setattr(token_source, "REFUSED_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.2))
    monkeypatch.setattr(connection_module, "ACK_SECONDS", 0.3)


@pytest.fixture
async def run(scheduler: JobScheduler, memory: Memory) -> AsyncIterator[StartSupervisor]:
    """`await run(url, api_key, subscriptions, permit=None, **provider_settings)`: a running supervisor."""
    started: list[RunningSupervisor] = []

    async def start(
        url: str, api_key: str, subscriptions: list[Subscription], permit: Permit | None = None, **settings: Any
    ) -> RunningSupervisor:
        provider = ProviderConfig.model_validate({"url": url, **settings})
        options: dict[str, Any] = {"spacing_seconds": 0.05, "permit": permit}
        tokens = TokenSource(f"{url}/jwt", SecretStr(api_key), provider.token, scheduler.at, **options)
        started.append(RunningSupervisor(provider, subscriptions, tokens, memory, permit))
        return started[-1]

    yield start
    for running in started:
        await running.stop()
