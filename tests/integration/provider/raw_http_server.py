"""A TCP server that answers each HTTP request with the bytes of the test, at the test's pace."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

Reply = Callable[[bytes], AsyncIterator[bytes]]


def http(status: int, body: bytes | str = b"", **headers: str) -> bytes:
    """Return a complete reply. Header names are written with ``_`` for ``-``."""
    raw = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(raw)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def token_reply(value: str = "a.token", **headers: str) -> bytes:
    return http(200, json.dumps({"token": value}), **headers)


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class RawHttpServer:
    """``async with RawHttpServer(reply, reply, …) as server``: each request gets the next reply; the last one repeats.

    A reply is bytes, or an asynchronous generator function of the request that yields them slowly.
    """

    def __init__(self, *replies: bytes | Reply, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[bytes] = []
        self.times: list[float] = []
        self.replies = list(replies)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
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
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            self.times.append(asyncio.get_running_loop().time())
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if isinstance(reply, bytes):
                writer.write(reply)
            else:
                async for part in reply(request):
                    writer.write(part)
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client closed the connection, or the test is over
        finally:
            writer.close()
            self._tasks.discard(task)
