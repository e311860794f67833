"""Detecting the protocol version with one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from ingestor.errors import ConnectionFailed, ConnectionRefused, ProtocolUnsupported
from ingestor.provider.socket import protocol
from ingestor.provider.socket.protocol import ProtocolDetector, ProtocolVersion, probe
from tests.support.reference_clients import login

from .conftest import TOKEN
from .raw_engineio_server import RawServer
from .raw_http_server import RawHttpServer, http

Serve = Callable[..., Awaitable[RawHttpServer]]
RawServe = Callable[..., Awaitable[RawServer]]
HANDSHAKE = '0{"sid":"a"}'


async def test_probe_sends_quoted_token(web_server: Serve) -> None:
    server = await web_server(http(200, HANDSHAKE))
    assert await probe(server.url, "a+b/c", None) is ProtocolVersion.SOCKET_IO_4
    assert server.requests[0].startswith(b"GET /socket.io/?EIO=4&transport=polling&token=a%2Bb/c HTTP/1.1")


async def test_probe_sends_token_of_nine_kilobytes(web_server: Serve) -> None:
    server = await web_server(http(200, HANDSHAKE))
    await probe(server.url, "x" * 9311, None)
    assert b"token=" + b"x" * 9311 in server.requests[0]


async def test_probe_does_not_follow_redirect(web_server: Serve) -> None:
    elsewhere = await web_server(http(200, HANDSHAKE))
    server = await web_server(http(302, Location=elsewhere.url))
    with pytest.raises(ConnectionFailed, match="redirect"):
        await probe(server.url, TOKEN, None)
    assert elsewhere.requests == []


async def test_probe_reads_a_bounded_amount(web_server: Serve) -> None:
    async def endless(_: bytes) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 X\r\n\r\n" + HANDSHAKE.encode()
        while True:
            yield b"x" * 4096

    server = await web_server(endless)
    async with asyncio.timeout(5):
        assert await probe(server.url, TOKEN, None) is ProtocolVersion.SOCKET_IO_4


async def test_probe_times_out(web_server: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.2)
    server = await web_server(nothing)
    with pytest.raises(ConnectionFailed, match=r"within 0\.2 s"):
        await probe(server.url, TOKEN, None)


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n0"])
async def test_probe_error_does_not_contain_the_token(web_server: Serve, reply: bytes) -> None:
    server = await web_server(reply)
    with pytest.raises(ConnectionFailed) as caught:
        await probe(server.url, TOKEN, None)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("url", ["http://127.0.0.1:9"])
async def test_probe_reports_unreachable_server(url: str) -> None:
    with pytest.raises(ConnectionFailed, match="connection refused"):
        await probe(url, TOKEN, None)


@pytest.mark.parametrize(
    ("reply", "error"),
    [(http(403, "Forbidden"), ConnectionRefused), (http(200, "Welcome to us."), ProtocolUnsupported)],
)
async def test_probe_distinguishes_refusal_and_unknown_version(
    web_server: Serve, reply: bytes, error: type[ConnectionFailed]
) -> None:
    server = await web_server(reply)
    with pytest.raises(error):
        await probe(server.url, TOKEN, None)


async def test_detector_probes_once_for_all_connections(raw_server: RawServe) -> None:
    server = await raw_server(generation="3")
    detector = ProtocolDetector(server.url, "auto", None)
    versions = await asyncio.gather(*(detector.detect(TOKEN) for _ in range(5)))
    assert set(versions) == {ProtocolVersion.SOCKET_IO_2}
    assert server.probes == 1
    detector.reset()
    await detector.detect(TOKEN)
    assert server.probes == 2


@pytest.mark.parametrize(
    ("protocol", "chosen"),
    [
        ("3", ProtocolVersion.SOCKET_IO_2),
        ("4", ProtocolVersion.SOCKET_IO_4),
        ("0.9", ProtocolVersion.SOCKET_IO_0),
    ],
)
async def test_configured_version_is_not_probed(protocol: Any, chosen: ProtocolVersion) -> None:
    detector = ProtocolDetector("http://127.0.0.1:9", protocol, None)
    detector.reset()
    assert await detector.detect(TOKEN) is chosen


@pytest.mark.node
@pytest.mark.parametrize("generation", ["1.0", "2.0", "2"])
async def test_probe_closes_its_session(generation: str, make_node_server: Callable[..., Any]) -> None:
    server = await make_node_server(generation)  # which would time the session out after 45 s
    await probe(server.url, (await login(server.url, server.api_key)), None)
    await server.until(lambda: server.count("connected") == server.count("disconnected") == 1)
