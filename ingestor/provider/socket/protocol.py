"""Which Socket.IO generation a server speaks: one request tells. The clients for each are in ``client``."""

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
from ingestor.provider.transport import RedirectRefused, describe_error, http_session

PROBE_BYTES = 4096  # of the answer that are looked at
PROBE_SECONDS = 30.0
QUOTED_CHARACTERS = 60  # of an answer we cannot read, in the message about it

# HTTP statuses by which a server refuses the token at the door. Engine.IO says 400 when it refuses a websocket,
# whatever the reason is.
REFUSED_STATUSES = frozenset({400, 401, 403})

_GENERATION_3 = re.compile(rb"\d+:0\{|\x00[\x00-\x09]+\xff0\{")  # text framing of 2.x, binary framing of 1.x
_SID = re.compile(rb'"sid":"([^"]{1,200})"')


class ProtocolVersion(Enum):
    """The Engine.IO revision, by which both sides of ``protocol:`` go."""

    SOCKET_IO_4 = "4"  # Socket.IO 3.x and 4.x: the server pings
    SOCKET_IO_2 = "3"  # Socket.IO 1.x and 2.x: the client pings, and is connected to "/" unasked


def socketio_path(url: str) -> str:
    """Where Socket.IO lives under the API's root ``url``, without slashes at the ends."""
    return f"{urlsplit(url).path.strip('/')}/socket.io".strip("/")


async def probe(
    url: str, token: str, verification: ssl.SSLContext | None = None, proxy: SecretStr | None = None
) -> ProtocolVersion:
    """Ask the server at ``url`` which generation it is; at most 30 s and 4 KiB.

    Raises:
        ConnectionRefused: it does not take the token. ConnectionFailed: no answer. ProtocolUnsupported: none we speak.
    """
    root = urlsplit(url)
    address = f"{root.scheme}://{root.netloc}/{socketio_path(url)}/?EIO=4&transport=polling&token={quote(token, '')}"
    try:
        async with (
            asyncio.timeout(PROBE_SECONDS),
            http_session(verification, proxy) as session,
            session.get(address) as answer,
        ):
            head = await _head(answer)
            dialect = classify(answer.status, head)
            await _hang_up(session, address, dialect, head)
            return dialect
    except TimeoutError:
        raise ConnectionFailed(f"{url}: no answer within {PROBE_SECONDS:g} s") from None
    except RedirectRefused as error:
        raise ConnectionFailed(f"{url}: {error}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ConnectionFailed(f"{url}: {describe_error(error)}") from None  # the cause's text holds the token


async def _hang_up(session: aiohttp.ClientSession, address: str, dialect: ProtocolVersion, head: bytes) -> None:
    """End the session that the probe began: to 1.x and 2.x it is a client like any other, until its pings run out."""
    sid = _SID.search(head)
    if sid is None:
        return
    close = (
        b"1" if dialect is ProtocolVersion.SOCKET_IO_4 else b"1:1"
    )  # in 1.x and 2.x a packet has its length before it
    headers = {"Content-Type": "text/plain;charset=UTF-8"}
    try:
        async with session.post(f"{address}&sid={quote(sid[1], safe='')}", data=close, headers=headers) as answer:
            await _head(answer)
    except (aiohttp.ClientError, OSError):
        pass  # then it ends by itself


class ProtocolDetector:
    """The dialect of one server: asked once for all connections, and remembered until ``forget``."""

    def __init__(
        self, url: str, protocol: str, verification: ssl.SSLContext | None, proxy: SecretStr | None = None
    ) -> None:
        """``protocol``: "4" or "3" decides without asking; "auto" asks."""
        self._url = url
        self._verification = verification
        self._proxy = proxy
        self._asked = asyncio.Lock()
        self._fixed = None if protocol == "auto" else ProtocolVersion(protocol)
        self._known = self._fixed

    async def detect(self, token: str) -> ProtocolVersion:
        """Raises what ``probe`` raises."""
        async with self._asked:
            if self._known is None:
                self._known = await probe(self._url, token, self._verification, self._proxy)
            return self._known

    def reset(self) -> None:
        """A connection failed: the server may have been replaced by one of another generation."""
        self._known = self._fixed


async def _head(answer: aiohttp.ClientResponse) -> bytes:
    head = b""
    async for chunk in answer.content.iter_any():
        head += chunk
        if len(head) >= PROBE_BYTES:
            break
    return head[:PROBE_BYTES]


def classify(status: int, body: bytes) -> ProtocolVersion:
    """What the answer to the probe says. ``body`` may be cut off anywhere after its first bytes.

    Raises:
        ConnectionRefused, ProtocolUnsupported, ConnectionFailed: with what to do in the message.
    """
    if status == 200 and body.startswith(b"0{"):
        return ProtocolVersion.SOCKET_IO_4
    if status == 200 and _GENERATION_3.match(body):
        return ProtocolVersion.SOCKET_IO_2
    if body.startswith(b"Welcome to socket.io"):
        raise ProtocolUnsupported("the server speaks Socket.IO 0.9, which we do not; it takes 1.0 or later")
    if b"Transport unknown" in body:
        raise ProtocolUnsupported("the server does not let itself be probed; set provider.protocol to 4 or 3")
    if status in REFUSED_STATUSES:
        raise ConnectionRefused(f"HTTP {status}: the server does not accept the token{_seen(body)}")
    if status == 404:
        raise ProtocolUnsupported("HTTP 404: no Socket.IO server there; check provider.url")
    if status != 200:
        raise ConnectionFailed(f"HTTP {status}{_seen(body)}")
    raise ProtocolUnsupported(f"the answer is not Socket.IO's{_seen(body)}; check provider.url")


def _seen(body: bytes) -> str:
    text = redactor.scrub(body.decode("utf-8", "replace"))[:QUOTED_CHARACTERS]
    return f" ({text!r})" if text else ""
