"""What clients that hold connections can take from the daemon."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp
import pytest

from ingestor.monitoring import http_listener

from .status_server import StatusContent


@pytest.fixture(autouse=True)
def at_most_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "MAX_CONNECTIONS", 4)


async def connect(url: str, text: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(text)
    return reader, writer


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 5) == b""
    except ConnectionError:
        return True


async def test_new_connection_replaces_the_one_idle_for_longest() -> None:
    async with StatusContent().server() as server, aiohttp.ClientSession(server.url) as kept:
        assert server.url
        assert (await (await kept.get("/healthz")).json())["ok"]
        idle = [await connect(server.url) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert (await (await kept.get("/healthz")).json())["ok"], "on its first connection"
        idle += [await connect(server.url) for _ in range(30)]
        async with aiohttp.ClientSession(server.url) as probe, probe.get("/healthz") as response:
            assert response.status == 200
        for reader, _ in idle[:30]:
            assert await is_closed(reader)
        assert server.connections <= 4
        for _, writer in idle:
            writer.transport.abort()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: local", id="headers that do not end"),
        pytest.param(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1", id="body that does not end"
        ),
        pytest.param(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3000, id="responses that are not read"),
    ],
)
async def test_connection_without_a_new_request_is_closed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(http_listener, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(http_listener, "CHECK_SECONDS", 0.05)
    async with StatusContent().server() as server:
        assert server.url
        _, writer = await connect(server.url, text)
        async with asyncio.timeout(5):
            while not server.connections:
                await asyncio.sleep(0.01)
            while server.connections:
                await asyncio.sleep(0.01)
        writer.transport.abort()
