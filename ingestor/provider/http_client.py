"""One HTTP request with requests, limited in total time and in size.

requests alone limits the time of each read, which a slow trickle never exceeds; follows redirects, which would carry
the credentials elsewhere; and raises exceptions whose text holds the URL. None of this leaves this module.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from socket import SHUT_RDWR, socket
from threading import Thread
from typing import Any

import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from ingestor import __version__
from ingestor.core.threads import start_thread
from ingestor.errors import IngestorError
from ingestor.provider.transport import describe_error, make_tls_context

CONNECT_SECONDS = 10.0
CHUNK_BYTES = 64 << 10


class RequestFailed(IngestorError):
    """No response within the limits; the message says why, without URL or secret. Try again later."""

    exit_code = 69


class BodyTooLarge(RequestFailed):
    """The response was larger than allowed and was not read to its end."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete response, whatever its status."""

    status: int
    headers: Mapping[str, str]  # case-insensitive names
    body: bytes = field(repr=False)  # may contain a token


@dataclass(kw_only=True, repr=False)
class HttpRequest:
    """A request that follows no redirect and takes nothing from the environment, such as .netrc.

    It runs in a daemon thread, because a blocking request cannot be interrupted: resolving a name, connecting and
    reading headers may each exceed the deadline. At the deadline, or on ``cancel``, its socket is shut down, which ends
    the thread; its result is dropped. Otherwise each login would leave a thread to a server that trickles bytes.
    """

    method: str
    url: str
    timeout_seconds: float
    max_bytes: int
    api_key: SecretStr | None = None  # sent as the user name of Basic authorization
    ca_file: Path | None = None
    proxy: SecretStr | None = None
    _results: SimpleQueue[HttpResponse | Exception] = field(init=False, default_factory=SimpleQueue)
    _sockets: list[socket] = field(init=False, default_factory=list)
    _is_over: bool = field(init=False, default=False)

    def send(self) -> HttpResponse:
        """Send the request and wait for the response. May be called once.

        Raises RequestFailed: no connection, no TLS, no complete response in time, or cancelled. Raises BodyTooLarge for
        more than ``max_bytes``.
        """
        try:
            start_thread(Thread(target=self._run, name="http request", daemon=True))
            result = self._results.get(timeout=self.timeout_seconds)
        except OSError as error:
            raise RequestFailed(describe_error(error)) from None
        except Empty:
            self._shut_down()
            raise RequestFailed(f"no complete response within {self.timeout_seconds:g} s") from None
        if isinstance(result, Exception):
            raise result
        return result

    def cancel(self) -> None:
        """Let ``send`` raise RequestFailed now. Safe from any thread, and more than once."""
        self._results.put(RequestFailed("cancelled"))
        self._shut_down()

    def _shut_down(self) -> None:
        self._is_over = True
        for sock in self._sockets:
            with suppress(OSError):  # closed already
                sock.shutdown(SHUT_RDWR)

    def _on_socket(self, sock: socket) -> None:
        self._sockets.append(sock.dup())  # TLS detaches the original from its descriptor
        if self._is_over:
            self._shut_down()

    def _run(self) -> None:
        try:
            self._results.put(self._exchange())
        except (requests.RequestException, HTTPError, OSError) as error:
            self._results.put(RequestFailed(describe_error(error)))  # without its cause, whose text holds the URL
        except Exception as error:
            self._results.put(error)
        finally:
            for sock in self._sockets:
                sock.close()

    def _exchange(self) -> HttpResponse:
        with (
            self._session() as session,
            session.request(
                self.method,
                self.url,
                timeout=(min(CONNECT_SECONDS, self.timeout_seconds), self.timeout_seconds),
                allow_redirects=False,
                stream=True,
            ) as response,
        ):
            body = bytearray()
            for chunk in response.iter_content(CHUNK_BYTES):
                body += chunk
                if len(body) > self.max_bytes:
                    raise BodyTooLarge(f"the response is longer than {self.max_bytes} bytes")
            return HttpResponse(response.status_code, CaseInsensitiveDict(response.headers), bytes(body))

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.headers.update({"User-Agent": f"ingestor/{__version__}", "Accept": "application/json"})
        session.headers["Accept-Encoding"] = "identity"
        if self.api_key is not None:
            session.auth = HTTPBasicAuth(self.api_key.get_secret_value().encode(), b"")
        if self.proxy is not None:
            session.proxies = dict.fromkeys(("http", "https"), self.proxy.get_secret_value())
        adapter = _Adapter(make_tls_context(self.ca_file), self._on_socket)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session


class _Adapter(HTTPAdapter):
    """Verifies certificates with our own context, as the websocket does, and passes each new socket on."""

    def __init__(self, tls_context: ssl.SSLContext, on_socket: Callable[[socket], None]) -> None:
        self._tls_context = tls_context
        self._pools = {
            "http": _pool_class(HTTPConnectionPool, HTTPConnection, on_socket),
            "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, on_socket),
        }
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls_context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        kwargs |= {"ssl_context": self._tls_context, "proxy_ssl_context": self._tls_context}
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, *_: Any) -> None:
        """Do nothing: the inherited method would trust requests' own authorities besides those of our context."""


def _pool_class(
    pool: type[HTTPConnectionPool], connection: type[HTTPConnection], on_socket: Callable[[socket], None]
) -> Any:
    def new_socket(self: HTTPConnection) -> socket:
        sock = connection._new_conn(self)
        on_socket(sock)
        return sock

    return type("Pool", (pool,), {"ConnectionCls": type("Connection", (connection,), {"_new_conn": new_socket})})
