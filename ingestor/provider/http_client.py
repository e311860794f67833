"""One HTTP question with requests, limited in time and size as a whole. Knows nothing of tokens or feeds.

requests' own timeouts are per read, so a body that trickles would beat them; a redirect would carry credentials
elsewhere; and its exceptions' text holds the URL. None of these gets out of here.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Any

import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from ingestor import __version__
from ingestor.errors import IngestorError
from ingestor.provider.transport import describe_error, make_tls_context

CONNECT_SECONDS = 10.0
CHUNK_BYTES = 8192


class RequestFailed(IngestorError):
    """No answer within the limits; the message says why, without URL or secret. Try again later."""

    exit_code = 69


class BodyTooLarge(RequestFailed):
    """The answer was larger than allowed, and was not read to its end."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
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
    """requests' transport: it shows every socket that it opens to ``watch``, and verifies as the websocket does."""

    def __init__(self, watch: Callable[[socket], None], verification: ssl.SSLContext) -> None:
        self._pools = _pools(watch)
        self._verification = verification
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._verification, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        kwargs |= {"ssl_context": self._verification, "proxy_ssl_context": self._verification}
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, *_: Any) -> None:
        """Nothing to add: the inherited one would trust authorities of its own besides those of our context."""


def _pools(watch: Callable[[socket], None]) -> dict[str, type[HTTPConnectionPool]]:
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

    return {"http": PlainPool, "https": SecurePool}


def send_request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    deadline: Deadline,
    max_bytes: int,
    ca_file: Path | None = None,
    proxy: SecretStr | None = None,
) -> HttpResponse:
    """Ask once, blocking, until ``deadline``; no redirects, and nothing from the environment, such as .netrc.

    Raises:
        RequestFailed: no connection, no TLS, no whole answer in time; ``BodyTooLarge`` for more than ``max_bytes``.
    """
    try:
        with (
            deadline,
            _session(deadline, ca_file, proxy) as session,
            session.request(
                method,
                url,
                headers={"User-Agent": f"ingestor/{__version__}", "Accept-Encoding": "identity", **headers},
                timeout=(min(CONNECT_SECONDS, deadline.seconds), deadline.seconds),
                allow_redirects=False,
                stream=True,
            ) as response,
        ):
            body = _bounded(response.iter_content(CHUNK_BYTES), max_bytes)
            if deadline.over:  # a body without a length that was cut looks whole
                raise requests.Timeout
            return HttpResponse(response.status_code, CaseInsensitiveDict(response.headers), body)
    except (requests.RequestException, HTTPError, OSError) as error:
        raise RequestFailed(_why(error, deadline)) from None  # the cause's text holds the URL


def _session(deadline: Deadline, ca_file: Path | None, proxy: SecretStr | None) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    if proxy is not None:
        session.proxies = dict.fromkeys(("http", "https"), proxy.get_secret_value())
    adapter = _Watched(deadline.watch, make_tls_context(ca_file))
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _bounded(chunks: Iterator[bytes], max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(f"the answer is longer than {max_bytes} bytes")
    return bytes(body)


def _why(error: BaseException, deadline: Deadline) -> str:
    if deadline.over:
        return f"no whole answer within {deadline.seconds:g} s"
    return describe_error(error)
