"""One HTTP question with requests, limited in time and size as a whole. Knows nothing of tokens or feeds.

requests' own timeouts are per read, so a body that trickles would beat them; a redirect would carry credentials
elsewhere; and its exceptions' text holds the URL. None of these gets out of here.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from ingestor import __version__
from ingestor.errors import IngestorError
from ingestor.redaction import redactor

CONNECT_SECONDS = 10.0
CHUNK_BYTES = 8192


class Unanswered(IngestorError):
    """No answer within the limits; the message says why, without URL or secret. Try again later."""

    exit_code = 69


class Oversized(Unanswered):
    """The answer was larger than allowed, and was not read to its end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes = field(repr=False)  # may be a token


class Deadline:
    """Ends a blocking call from outside: when its time is over, or when nobody waits for it any more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.over = False
        self._lock = threading.Lock()
        self._twins: list[socket] = []
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for twin in self._twins:
                twin.close()
            self._twins.clear()

    def watch(self, sock: socket) -> None:
        """Cut this socket too. A duplicate is kept, since TLS detaches the original from its descriptor."""
        with self._lock:
            self._twins.append(sock.dup())
        if self.over:
            self.cut()

    def cut(self) -> None:
        """End the call now. Safe from any thread, and more than once."""
        self.over = True
        with self._lock:
            for twin in self._twins:
                try:
                    twin.shutdown(SHUT_RDWR)
                except OSError:
                    pass  # the other side was first


class _Watched(HTTPAdapter):
    """requests' transport, which shows every socket that it opens to ``watch``."""

    def __init__(self, watch: Callable[[socket], None]) -> None:
        self._watch = watch
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        watch = self._watch

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket:
                sock = super()._new_conn()
                watch(sock)
                return sock

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket:
                sock = super()._new_conn()
                watch(sock)
                return sock

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


def ask(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    deadline: Deadline,
    max_bytes: int,
    ca_file: Path | None = None,
) -> Answer:
    """Ask once, blocking, until ``deadline``; no redirects, no proxies and no .netrc from the environment.

    Raises:
        Unanswered: no connection, no TLS, no whole answer in time; ``Oversized`` for more than ``max_bytes``.
    """
    try:
        with (
            deadline,
            _session(deadline) as session,
            session.request(
                method,
                url,
                headers={"User-Agent": f"ingestor/{__version__}", "Accept-Encoding": "identity", **headers},
                timeout=(min(CONNECT_SECONDS, deadline.seconds), deadline.seconds),
                allow_redirects=False,
                stream=True,
                verify=str(ca_file) if ca_file else True,
            ) as response,
        ):
            body = _bounded(response.iter_content(CHUNK_BYTES), max_bytes)
            if deadline.over:  # a body without a length that was cut looks whole
                raise requests.Timeout
            return Answer(response.status_code, CaseInsensitiveDict(response.headers), body)
    except (requests.RequestException, HTTPError, OSError) as error:
        raise Unanswered(_why(error, deadline)) from None  # the cause's text holds the URL


def _session(deadline: Deadline) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    adapter = _Watched(deadline.watch)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _bounded(chunks: Iterator[bytes], max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > max_bytes:
            raise Oversized(f"the answer is longer than {max_bytes} bytes")
    return bytes(body)


def _why(error: BaseException, deadline: Deadline) -> str:
    if deadline.over:
        return f"no whole answer within {deadline.seconds:g} s"
    return reason(error)


def reason(error: BaseException) -> str:
    """What failed, in words, from the innermost cause that has some: the outer ones quote URLs."""
    links = list(_chain(error))
    for link in links:
        # aiohttp's own error is an instance too, without the words
        if isinstance(link, ssl.SSLCertVerificationError) and hasattr(link, "verify_message"):
            return f"the server's certificate was not accepted: {link.verify_message}"
    for link in reversed(links):
        if isinstance(link, OSError) and link.strerror:
            # asyncio and the resolver put words of their own there, with addresses; the number is the system's
            words = os.strerror(link.errno) if link.errno and link.errno > 0 else link.strerror
            return redactor.scrub(words.lower())
    return "no answer in time" if isinstance(error, requests.Timeout) else type(links[-1]).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
