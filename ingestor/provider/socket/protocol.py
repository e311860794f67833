"""Detect with one request which Socket.IO protocol version a server speaks. The clients are in ``client_factory``."""

from __future__ import annotations

import asyncio
import re
import ssl
from enum import Enum
from urllib.parse import quote, urlsplit

import aiohttp
from pydantic import SecretStr

from ingestor.core.redaction import redactor
from ingestor.errors import ConnectionFailed, ConnectionRefused, ProtocolUnsupported
from ingestor.provider.transport import describe_error, http_session, with_remedy

PROBE_BYTES = 4096  # of the response that are read
PROBE_SECONDS = 30.0
QUOTED_CHARACTERS = 60  # of an unexpected response, in the error message

# HTTP statuses by which a server refuses the token; Engine.IO answers 400 whenever it refuses a websocket.
REFUSED_STATUSES = frozenset({400, 401, 403})

_HANDSHAKE_V3 = re.compile(rb"\d+:0\{|\x00[\x00-\x09]+\xff0\{")  # text framing of 2.x, binary framing of 1.x
_SID = re.compile(rb'"sid":"([^"]{1,200})"')


class ProtocolVersion(Enum):
    """The Engine.IO revision, if there is one, as in the config key ``provider.protocol``."""

    SOCKET_IO_4 = "4"  # Socket.IO 3.x and 4.x: the server pings
    SOCKET_IO_2 = "3"  # Socket.IO 1.x and 2.x: the client pings, and the server connects "/" by itself
    SOCKET_IO_0 = "0.9"  # Socket.IO 0.8 and 0.9, which have no Engine.IO; the number is that of Socket.IO


def socketio_path(url: str) -> str:
    """Return the path of Socket.IO under the API's root ``url``, without slashes at either end."""
    return f"{urlsplit(url).path.strip('/')}/socket.io".strip("/")


async def probe(
    url: str, token: str, tls_context: ssl.SSLContext | None = None, proxy: SecretStr | None = None
) -> ProtocolVersion:
    """Request the version from the server at ``url``; reads at most 4 KiB within 30 s.

    Raises ConnectionRefused for the token, ConnectionFailed without a response, ProtocolUnsupported for other versions.
    """
    root = urlsplit(url)
    address = f"{root.scheme}://{root.netloc}/{socketio_path(url)}/?EIO=4&transport=polling&token={quote(token, '')}"
    try:
        async with (
            asyncio.timeout(PROBE_SECONDS),
            http_session(tls_context, proxy) as session,
            session.get(address) as response,
        ):
            head = await read_head(response)
            version = classify(response.status, head)
            await _close_session(session, address, version, head)
            return version
    except TimeoutError:
        raise ConnectionFailed(f"{url}: {with_remedy(f'no answer within {PROBE_SECONDS:g} s')}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ConnectionFailed(
            f"{url}: {with_remedy(describe_error(error))}"
        ) from None  # the cause's text holds the token


async def _close_session(session: aiohttp.ClientSession, address: str, version: ProtocolVersion, head: bytes) -> None:
    """Close the session that the probe opened: 1.x and 2.x count it as a client until its pings time out."""
    sid = _SID.search(head)
    if sid is None:
        return
    # A CLOSE packet; in 1.x and 2.x its length comes first.
    close = b"1" if version is ProtocolVersion.SOCKET_IO_4 else b"1:1"
    headers = {"Content-Type": "text/plain;charset=UTF-8"}
    try:
        async with session.post(f"{address}&sid={quote(sid[1], safe='')}", data=close, headers=headers) as response:
            await read_head(response)
    except (aiohttp.ClientError, OSError):
        pass  # the server times the session out


class ProtocolDetector:
    """The protocol version of one server, detected once for all connections and remembered until ``reset``."""

    def __init__(
        self, url: str, protocol: str, tls_context: ssl.SSLContext | None, proxy: SecretStr | None = None
    ) -> None:
        """``protocol``: "4", "3" or "0.9" to use that version; "auto" to detect it."""
        self._url = url
        self._tls_context = tls_context
        self._proxy = proxy
        self._lock = asyncio.Lock()
        self._configured = None if protocol == "auto" else ProtocolVersion(protocol)
        self._version = self._configured

    async def detect(self, token: str) -> ProtocolVersion:
        """Return the version; probe the server if it is not known. Raises what ``probe`` raises."""
        async with self._lock:
            if self._version is None:
                self._version = await probe(self._url, token, self._tls_context, self._proxy)
            return self._version

    def reset(self) -> None:
        """Detect again next time: a connection failed, and the server may have been replaced by another version."""
        self._version = self._configured


async def read_head(response: aiohttp.ClientResponse) -> bytes:
    """Return the first 4 KiB of a response's body."""
    head = b""
    async for chunk in response.content.iter_any():
        head += chunk
        if len(head) >= PROBE_BYTES:
            break
    return head[:PROBE_BYTES]


def classify(status: int, body: bytes) -> ProtocolVersion:
    """Return the version that a response to the probe shows. ``body`` may be truncated after its first bytes.

    Raises ConnectionRefused, ProtocolUnsupported, ConnectionFailed; the message says what to do.
    """
    if status == 200 and body.startswith(b"0{"):
        return ProtocolVersion.SOCKET_IO_4
    if status == 200 and _HANDSHAKE_V3.match(body):
        return ProtocolVersion.SOCKET_IO_2
    if status == 200 and body.startswith(b"Welcome to socket.io"):
        return ProtocolVersion.SOCKET_IO_0
    if b"Transport unknown" in body:
        raise ProtocolUnsupported(
            "the server does not allow polling, so its version cannot be detected; set provider.protocol to 4 or 3"
        )
    if status in REFUSED_STATUSES:
        raise ConnectionRefused(f"HTTP {status}: the server does not accept the token{quote_body(body)}")
    if status == 404:
        raise ProtocolUnsupported("HTTP 404: no Socket.IO server at this URL; check provider.url")
    if status != 200:
        raise ConnectionFailed(f"HTTP {status}{quote_body(body)}")
    raise ProtocolUnsupported(f"the response is not from a Socket.IO server{quote_body(body)}; check provider.url")


def quote_body(body: bytes) -> str:
    """Return the beginning of a body for an error message, in brackets and without secrets."""
    text = redactor.scrub(body.decode("utf-8", "replace"))[:QUOTED_CHARACTERS]
    return f" ({text!r})" if text else ""
