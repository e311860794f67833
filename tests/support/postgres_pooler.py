"""A connection pooler in front of a PostgreSQL server that trusts its clients, such as PgBouncer."""

from __future__ import annotations

import re
import select
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

_ENCRYPTION_REQUESTS = (80877103, 80877104)  # SSLRequest, GSSENCRequest
_FAKE_KEY = b"K" + struct.pack(">iii", 12, 1, 1)  # a pooler invents what clients cancel their statements with


class PostgresPooler:
    """Gives each client a session of its own, or a session for each transaction only (``per_transaction``).

    It ignores the startup parameter ``options``.
    """

    def __init__(self, server_url: str, *, per_transaction: bool) -> None:
        server = urlsplit(server_url)
        assert server.hostname and server.port
        self._server = server.hostname, server.port
        self.per_transaction = per_transaction
        self._idle: list[socket.socket] = []  # the last one is taken first
        self._opened: list[socket.socket] = []
        self._has_ended = False
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        user = server.netloc.rpartition("@")[0]
        self.url = f"postgresql://{user}@127.0.0.1:{self._listener.getsockname()[1]}{server.path}"

    def __enter__(self) -> PostgresPooler:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        with self._lock:
            self._has_ended = True
        self.drop()

    def drop(self) -> None:
        """Close all connections."""
        self._idle.clear()
        while self._opened:
            opened = self._opened.pop()
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _keep(self, opened: socket.socket) -> None:
        """Let ``drop`` close a connection. Raises OSError if it has come too late."""
        with self._lock:
            if not self._has_ended:
                self._opened.append(opened)
                return
        opened.close()
        raise ConnectionAbortedError

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._keep(client)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError, ValueError), client:  # ValueError: closed by ``drop``
            startup = _read_startup(client)
            server, greeting = self._connect(startup)
            is_released = self._release(server)
            client.sendall(greeting)
            if not is_released:
                self._relay(client, server)
            while True:
                select.select([client], [], [])
                self._relay(client, self._idle.pop() if self._idle else self._connect(startup)[0])

    def _connect(self, startup: bytes) -> tuple[socket.socket, bytes]:
        server = socket.create_connection(self._server)
        self._keep(server)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.sendall(startup)
        greeting = b""
        while greeting[-6:-1] != b"Z\0\0\0\5":
            message = _read_message(server)
            greeting += _FAKE_KEY if message[:1] == b"K" else message
        return server, greeting

    def _release(self, server: socket.socket) -> bool:
        """Leave the session to others, before our client knows that its transaction has ended, so that tests repeat."""
        if self.per_transaction:
            self._idle.append(server)
        return self.per_transaction

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Pass messages on until the session is released."""
        while True:
            readable, _, _ = select.select([client, server], [], [])
            if client in readable:
                data = client.recv(65536)
                if not data or data[:1] == b"X":
                    raise EOFError
                server.sendall(data)
            if server in readable:
                message = _read_message(server)
                is_released = message == b"Z\0\0\0\5I" and self._release(server)
                client.sendall(message)
                if is_released:
                    return


def _read_startup(client: socket.socket) -> bytes:
    while True:
        length, code = struct.unpack(">ii", _read(client, 8))
        if code not in _ENCRYPTION_REQUESTS:
            body = re.sub(rb"\0options\0[^\0]*", b"", b"\0" + _read(client, length - 8))[1:]
            return struct.pack(">ii", 8 + len(body), code) + body
        client.sendall(b"N")


def _read_message(server: socket.socket) -> bytes:
    head = _read(server, 5)
    return head + _read(server, struct.unpack(">i", head[1:])[0] - 4)


def _read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
