"""An HTTP proxy as used in companies: it tunnels with CONNECT and forwards plain requests."""

from __future__ import annotations

import asyncio
import base64
import ssl
from typing import Self
from urllib.parse import urlsplit

_CHUNK_BYTES = 65_536


class ConnectProxy:
    """``async with ConnectProxy() as proxy``. Connects to the requested port on loopback, whatever the host.

    With ``credentials`` ("user:password"), requests without them get a 407.
    """

    def __init__(self, credentials: str = "", *, tls: ssl.SSLContext | None = None) -> None:
        self.credentials = credentials
        self.requests: list[str] = []  # "CONNECT provider.test:443", "POST http://provider.test/jwt"
        self.request_heads: list[bytes] = []  # everything that was not encrypted for it
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.request_heads.append(head)
            method, target, _ = head.decode().split(" ", 2)
            self.requests.append(f"{method} {target}")
            if self._is_authorized(head):
                await self._forward(method, target, head, reader, writer)
            else:
                writer.write(b"HTTP/1.1 407 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one end closed the connection, or the test is over
        finally:
            writer.close()
            self._tasks.discard(task)

    def _is_authorized(self, head: bytes) -> bool:
        basic = base64.b64encode(self.credentials.encode())
        return not self.credentials or b"Proxy-Authorization: Basic " + basic + b"\r\n" in head

    async def _forward(
        self, method: str, target: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", url.port)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                up_writer.write(head.replace(f"{url.scheme}://{url.netloc}".encode(), b"", 1))
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, up_writer))
                both.create_task(_pump(up_reader, writer))
        except* OSError:
            pass  # a reset; the other end is closed below
        finally:
            up_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()
