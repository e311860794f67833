"""Through a proxy to a server that only the proxy can reach: the name provider.test resolves nowhere else."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from ingestor.config.model import ProviderConfig, Subscription
from ingestor.core.clock import Clocks
from ingestor.errors import ConnectionFailed, ConnectionRefused, IngestorError, TokenUnavailable
from ingestor.provider.auth import Token, TokenSource
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.socket.connection import Connection, ConnectionSettings
from ingestor.provider.socket.protocol import ProtocolVersion
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.supervisor import Supervisor
from ingestor.provider.transport import make_tls_context

from ...support.connect_proxy import ConnectProxy
from .conftest import KEY, WAYS, Reach
from .raw_engineio_server import ClientSocket, Memory, RawServer
from .raw_http_server import RawHttpServer, http
from .raw_socketio_09_server import RawSocketIo09Server

CREDENTIALS = "somebody:s3cret"
AAPL = Subscription("/real-time/crowd-sentiment", "get", {"ticker": "AAPL"})
Serve = Callable[..., Awaitable[RawHttpServer]]


@pytest.fixture
async def make_proxy() -> AsyncIterator[Callable[..., Awaitable[ConnectProxy]]]:
    async with AsyncExitStack() as running:

        async def make(*args: Any, **settings: Any) -> ConnectProxy:
            return await running.enter_async_context(ConnectProxy(*args, **settings))

        yield make


def proxied_url(url: str) -> str:
    """Return the server's URL with the name that only the proxy can resolve."""
    parts = urlsplit(url)
    return f"{parts.scheme}://provider.test:{parts.port}"


def proxy_url(proxy: ConnectProxy, credentials: str = "") -> SecretStr:
    return SecretStr(f"http://{credentials}{credentials and '@'}127.0.0.1:{proxy.port}")


async def test_supervisor_uses_proxy_for_all_requests(
    raw_server: Any, make_proxy: Any, server_side: ssl.SSLContext, certificate: Path, memory: Memory, scheduler: Any
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.acknowledge()
        await client.send('42["res",[]]')

    server: RawServer = await raw_server(talk, tls=server_side)
    proxy: ConnectProxy = await make_proxy(CREDENTIALS)
    url, proxy_setting = proxied_url(server.url), proxy_url(proxy, CREDENTIALS)
    provider = ProviderConfig.model_validate({"url": url, "ca_file": str(certificate)})
    tokens = TokenSource(f"{url}/jwt", KEY, provider.token, scheduler.at, ca_file=provider.ca_file, proxy=proxy_setting)
    supervisor = Supervisor(provider, [AAPL], tokens, memory, memory.append, ActivityTracker(), Clocks(), proxy_setting)
    running = asyncio.create_task(supervisor.run())
    await memory.until(lambda: memory.frames)
    await supervisor.stop()
    await running
    await tokens.close()
    assert proxy.requests == [f"CONNECT {urlsplit(url).netloc}"] * 3
    assert b"token=" not in b"".join(proxy.request_heads)
    assert b"\r\nAuthorization" not in b"".join(proxy.request_heads)
    assert "Proxy-Authorization" not in server.clients[0].request.headers


@pytest.mark.parametrize("way", WAYS)
async def test_plain_http_uses_proxy(raw_server: Any, make_proxy: Any, reach: Reach, way: str) -> None:
    server, proxy = await raw_server(), await make_proxy(CREDENTIALS)
    await reach(way, proxied_url(server.url), proxy_url(proxy, CREDENTIALS))
    assert proxy.requests


async def test_socket_io_0_9_uses_proxy_for_handshake_and_websocket(
    raw_09_server: Any,
    make_proxy: Any,
    server_side: ssl.SSLContext,
    certificate: Path,
    memory: Memory,
    token: Token,
) -> None:
    server: RawSocketIo09Server = await raw_09_server(tls=server_side)
    proxy: ConnectProxy = await make_proxy(CREDENTIALS)
    settings = ConnectionSettings(
        url=proxied_url(server.url),
        path="/p",
        params="{}",
        events=("res",),
        tls_context=make_tls_context(certificate),
        proxy=proxy_url(proxy, CREDENTIALS),
    )
    connection = Connection(settings, ProtocolVersion.SOCKET_IO_0, memory, memory.append)
    await connection.open(token)
    await connection.close("stopped", "opened")
    assert len(server.clients) == 1
    assert set(proxy.requests) == {f"CONNECT {urlsplit(settings.url).netloc}"}
    assert b"token=" not in b"".join(proxy.request_heads)
    assert "Proxy-Authorization" not in server.clients[0].request.headers


@pytest.mark.parametrize("way", WAYS)
async def test_proxy_may_use_tls(
    raw_server: Any, make_proxy: Any, reach: Reach, server_side: ssl.SSLContext, way: str
) -> None:
    server, proxy = await raw_server(tls=server_side), await make_proxy(tls=server_side)
    await reach(way, proxied_url(server.url), SecretStr(f"https://127.0.0.1:{proxy.port}"))
    assert proxy.requests


@pytest.mark.parametrize("way", WAYS)
async def test_proxy_cannot_impersonate_the_server(
    raw_server: Any, make_proxy: Any, reach: Reach, server_side: ssl.SSLContext, way: str
) -> None:
    server, proxy = await raw_server(tls=server_side), await make_proxy()
    with pytest.raises((TokenUnavailable, ConnectionFailed), match="server's certificate was not accepted"):
        await reach(way, proxied_url(server.url), proxy_url(proxy), ca_file=None)
    assert proxy.requests
    assert server.clients == []


@pytest.mark.parametrize("way", WAYS)
async def test_proxy_authentication_error_is_no_token_refusal(make_proxy: Any, reach: Reach, way: str) -> None:
    proxy = await make_proxy(CREDENTIALS)
    with pytest.raises(IngestorError, match="the proxy from the environment: HTTP 407") as caught:
        await reach(way, "https://provider.test", proxy_url(proxy, "somebody:else"))
    assert not isinstance(caught.value, ConnectionRefused)
    assert "else" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("way", WAYS)
async def test_unreachable_proxy_is_reported(reach: Reach, way: str) -> None:
    with pytest.raises(IngestorError, match="the proxy from the environment: connection refused"):
        await reach(way, "https://provider.test", SecretStr("http://somebody:s3cret@127.0.0.1:9"))


async def test_trickle_through_proxy_ends_at_deadline(
    web_server: Serve, make_proxy: Any, server_side: ssl.SSLContext, certificate: Path
) -> None:
    async def trickle(_: bytes) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 X\r\nContent-Type: text/html\r\n\r\n"
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    server, proxy = await web_server(trickle, tls=server_side), await make_proxy()
    login = asyncio.to_thread(
        fetch_token,
        f"{proxied_url(server.url)}/jwt",
        KEY,
        lifetime_seconds=60,
        timeout_seconds=0.5,
        ca_file=certificate,
        proxy=proxy_url(proxy),
    )
    async with asyncio.timeout(10):
        with pytest.raises(TokenUnavailable, match=r"within 0\.5 s"):
            await login


@pytest.mark.parametrize("way", WAYS)
async def test_proxy_variables_are_not_read_implicitly(
    web_server: Serve, reach: Reach, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = await web_server(http(404))
    with pytest.raises(IngestorError, match="HTTP 404"):
        await reach(way, server.url)
    assert base64.b64encode(b"somebody:else") not in server.requests[0]
