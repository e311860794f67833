"""TLS is always verified, for tokens, probes and sockets."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ingestor.errors import ConnectionFailed, TokenUnavailable

from .conftest import WAYS, Reach
from .raw_engineio_server import RawServer


def count_requests(server: RawServer) -> int:
    """Return how many requests the server received."""
    return len(server.clients) + server.probes + server.logins


@pytest.mark.parametrize("way", WAYS)
async def test_unknown_certificate_is_rejected_before_any_request(
    raw_server: Callable[..., Awaitable[RawServer]],
    server_side: ssl.SSLContext,
    certificate: Path,
    reach: Reach,
    way: str,
) -> None:
    server = await raw_server(tls=server_side)
    with pytest.raises((TokenUnavailable, ConnectionFailed), match="server's certificate was not accepted"):
        await reach(way, server.url, ca_file=None)
    assert count_requests(server) == 0
    await reach(way, server.url, ca_file=certificate)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose policy allows versions before TLS 1.2."""
    strict = ssl.create_default_context

    def create(*args: Any, **settings: Any) -> ssl.SSLContext:
        context = strict(*args, **settings)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("ALL:@SECLEVEL=0")
        return context

    monkeypatch.setattr(ssl, "create_default_context", create)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("lenient")
async def test_tls_below_1_2_is_rejected(
    raw_server: Callable[..., Awaitable[RawServer]],
    server_side: ssl.SSLContext,
    reach: Reach,
    way: str,
) -> None:
    server_side.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    server_side.set_ciphers("ALL:@SECLEVEL=0")
    server = await raw_server(tls=server_side)
    await reach(way, server.url)
    before = count_requests(server)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server_side.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((TokenUnavailable, ConnectionFailed)):
        await reach(way, server.url)
    assert count_requests(server) == before
