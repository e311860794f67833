"""Plain clients that owe nothing to the code under test: they ask a server what it really says."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, Self

import aiohttp
import socketio

TIMEOUT_SECONDS = 10


def basic_auth(api_key: str) -> dict[str, str]:
    """The headers that a request with this key carries."""
    return {"Authorization": "Basic " + base64.b64encode(f"{api_key}:".encode()).decode()}


async def login(url: str, api_key: str) -> str:
    """A token of this server. Raises aiohttp.ClientResponseError if it gives none."""
    async with (
        aiohttp.ClientSession(raise_for_status=True, headers=basic_auth(api_key)) as session,
        session.post(f"{url}/jwt") as response,
    ):
        token: str = (await response.json())["token"]
        return token


class HandshakeRefused(Exception):
    """The server did not accept the token; ``args[0]`` is what it said."""


class _Listener:
    """What both generations' clients have in common: what came in, and waiting for it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.end_reasons: list[Any] = []  # why it was refused, or has ended
        self._news = asyncio.Event()

    def _heard(self, event: str, payload: Any) -> None:
        self.events.append((event, payload))
        self._news.set()

    def _ended(self, reason: Any) -> None:
        self.end_reasons.append(reason)
        self._news.set()

    def rows(self, event: str) -> list[dict[str, Any]]:
        """The rows of every such event, in order."""
        payloads = [payload for name, payload in self.events if name == event]
        return [row for one in payloads for row in (one["results"] if isinstance(one, dict) else one)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until it holds. Raises TimeoutError."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                self._news.clear()
                await self._news.wait()


class EngineIo4Client(_Listener):
    """Socket.IO 3.x/4.x, by python-socketio: ``async with Client(url, token) as client``."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self._target = f"{url}?token={token}"
        self._client = socketio.AsyncClient(reconnection=False, handle_sigint=False)
        self._client.on("*", self._heard)
        self._client.on("disconnect", self._ended)
        self._client.on("connect_error", self._ended)

    async def __aenter__(self) -> Self:
        try:
            await self._client.connect(self._target, transports=["websocket"], wait_timeout=TIMEOUT_SECONDS)
        except socketio.exceptions.ConnectionError:
            if self._client.eio.http:  # left open by the library where the handshake was no websocket's
                await self._client.eio.http.close()
            raise HandshakeRefused(*self.end_reasons) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.disconnect()

    @property
    def connected(self) -> bool:
        return bool(self._client.connected)

    async def request(self, event: str, path: str, **params: str) -> Any:
        """Send ``subscribe`` or ``unsubscribe``; what the acknowledgement said. Raises TimeoutError."""
        wanted = {"path": path, "method": "get", "params": params}
        try:
            return await self._client.call(event, wanted, timeout=2)
        except socketio.exceptions.TimeoutError:
            raise TimeoutError(f"no acknowledgement of {event} {path}") from None


class EngineIo3Client(_Listener):
    """Socket.IO 1.x/2.x (Engine.IO 3), by hand over a websocket: the client pings, ``/`` is connected by the server."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self._target = f"{url}/socket.io/?EIO=3&transport=websocket&token={token}"
        self._asked = 0
        self._acknowledged: dict[int, Any] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        try:
            await self._open()
        except BaseException:
            await self._session.close()
            raise
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._ping())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()
        await self._session.close()

    async def request(self, event: str, path: str, **params: str) -> Any:
        """Send ``subscribe`` or ``unsubscribe``; what the acknowledgement said. Raises TimeoutError."""
        number, self._asked = self._asked, self._asked + 1
        wanted = {"path": path, "method": "get", "params": params}
        await self._socket.send_str(f"42{number}{json.dumps([event, wanted])}")
        await self.until(lambda: number in self._acknowledged)
        return self._acknowledged.pop(number)

    async def _open(self) -> None:
        self._socket = await self._session.ws_connect(self._target)
        opening = await self._socket.receive_str(timeout=TIMEOUT_SECONDS)
        self._ping_seconds = json.loads(opening[1:])["pingInterval"] / 1000
        answer = await self._socket.receive_str(timeout=TIMEOUT_SECONDS)
        if answer.startswith("44"):
            await self._socket.close()
            raise HandshakeRefused(json.loads(answer[2:]))
        assert answer == "40", answer

    async def _read(self) -> None:
        async for message in self._socket:
            text = message.data
            if text.startswith("42"):
                self._heard(*json.loads(text[2:]))
            elif text.startswith("43"):
                number, _, rest = text[2:].partition("[")
                self._acknowledged[int(number)] = json.loads("[" + rest)[0]
            elif text == "41":
                self._ended("server disconnect")
            self._news.set()
        self._ended(self._socket.close_code)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._ping_seconds)
            await self._socket.send_str("2")
