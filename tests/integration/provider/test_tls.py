"""TLS is always verified, on the token's way and on the socket's."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ingestor.errors import ConnectionFailed, TokenUnavailable
from ingestor.provider.connection import Connection, Line
from ingestor.provider.dialect import Dialect, probe, tls
from ingestor.provider.token import Token
from ingestor.provider.token.login import fetch

from ...support.missing import missing
from .raw import Memory, RawServer
from .web import WebServer, token_reply

KEY = SecretStr("key-of-tls")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that only itself vouches for, with its key."""
    if not shutil.which("openssl"):
        missing("TLS: install openssl")
    made = tmp_path_factory.mktemp("tls") / "pair.pem"
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, *name, "-keyout", made, "-out", f"{made}.crt"], check=True, capture_output=True)
    made.write_text(made.read_text() + Path(f"{made}.crt").read_text())
    return made


@pytest.fixture
def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def trade(server: WebServer, ca_file: Path | None) -> Token:
    return await asyncio.to_thread(fetch, f"{server.url}/jwt", KEY, lifetime_seconds=60, ca_file=ca_file)


async def test_a_token_is_asked_of_nobody_whose_certificate_is_unknown(
    web_server: Callable[..., Awaitable[WebServer]], server_side: ssl.SSLContext, certificate: Path
) -> None:
    server = await web_server(token_reply(), tls=server_side)
    with pytest.raises(TokenUnavailable, match="certificate was not accepted"):
        await trade(server, None)
    assert server.requests == []
    assert (await trade(server, certificate)).value == "a.token"


@pytest.mark.parametrize("what", ["probe", "socket"])
async def test_a_socket_is_opened_to_nobody_whose_certificate_is_unknown(
    raw_server: Callable[..., Awaitable[RawServer]],
    server_side: ssl.SSLContext,
    certificate: Path,
    memory: Memory,
    token: Token,
    what: str,
) -> None:
    server = await raw_server(tls=server_side)

    async def reach(verification: ssl.SSLContext) -> Any:
        if what == "probe":
            return await probe(server.url, token.value, verification)
        line = Line(url=server.url, path="/p", params="{}", events=("res",), verification=verification)
        one = Connection(line, Dialect.SOCKET_IO_4, memory, memory.append)
        await one.open(token)
        return await one.close("stopped", "seen enough")

    with pytest.raises(ConnectionFailed, match="certificate was not accepted"):
        await reach(tls(None))
    assert server.visitors == []
    await reach(tls(certificate))
