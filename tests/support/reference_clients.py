"""Clients that are independent of the code under test, to check what a server really sends."""

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
    """Return the headers of a request with this key."""
    return {"Authorization": "Basic " + base64.b64encode(f"{api_key}:".encode()).decode()}


async def login(url: str, api_key: str) -> str:
    """Return a token of this server. Raises aiohttp.ClientResponseError if it is refused."""
    async with (
        aiohttp.ClientSession(raise_for_status=True, headers=basic_auth(api_key)) as session,
        session.post(f"{url}/jwt") as response,
    ):
        token: str = (await response.json())["token"]
        return token


class HandshakeRefused(Exception):
    """The server refused the token; ``args[0]`` is its message."""


class _Listener:
    """The common part of both clients: received events, and waiting for them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.end_reasons: list[Any] = []  # why the connection was refused or ended
        self._changed = asyncio.Event()

    def _on_event(self, event: str, payload: Any) -> None:
        self.events.append((event, payload))
        self._changed.set()

    def _on_end(self, reason: Any) -> None:
        self.end_reasons.append(reason)
        self._changed.set()

    def rows(self, event: str) -> list[dict[str, Any]]:
        """Return the rows of every event of this name, in order."""
        payloads = [payload for name, payload in self.events if name == event]
        lists = [payload["results"] if isinstance(payload, dict) else payload for payload in payloads]
        return [row for rows in lists for row in rows]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; checked after each event. Raises TimeoutError."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class EngineIo4Client(_Listener):
    """A client for Socket.IO 3.x and 4.x, on python-socketio: ``async with EngineIo4Client(url, token)``."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self._target = f"{url}?token={token}"
        self._client = socketio.AsyncClient(reconnection=False, handle_sigint=False)
        self._client.on("*", self._on_event)
        self._client.on("disconnect", self._on_end)
        self._client.on("connect_error", self._on_end)

    async def __aenter__(self) -> Self:
        try:
            await self._client.connect(self._target, transports=["websocket"], wait_timeout=TIMEOUT_SECONDS)
        except socketio.exceptions.ConnectionError:
            if self._client.eio.http:  # the library leaves it open after a failed websocket handshake
                await self._client.eio.http.close()
            raise HandshakeRefused(*self.end_reasons) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.disconnect()

    @property
    def connected(self) -> bool:
        return bool(self._client.connected)

    async def request(self, event: str, path: str, **params: str) -> Any:
        """Send ``subscribe`` or ``unsubscribe``, and return the acknowledgement. Raises TimeoutError."""
        subscription = {"path": path, "method": "get", "params": params}
        try:
            return await self._client.call(event, subscription, timeout=2)
        except socketio.exceptions.TimeoutError:
            raise TimeoutError(f"no acknowledgement of {event} {path}") from None


class EngineIo3Client(_Listener):
    """A client for Socket.IO 1.x and 2.x (Engine.IO 3) on a bare websocket.

    In this generation the client sends the pings, and the server connects the namespace ``/``.
    """

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self._target = f"{url}/socket.io/?EIO=3&transport=websocket&token={token}"
        self._request_count = 0
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
        """Send ``subscribe`` or ``unsubscribe``, and return the acknowledgement. Raises TimeoutError."""
        number, self._request_count = self._request_count, self._request_count + 1
        subscription = {"path": path, "method": "get", "params": params}
        await self._socket.send_str(f"42{number}{json.dumps([event, subscription])}")
        await self.until(lambda: number in self._acknowledged)
        return self._acknowledged.pop(number)

    async def _open(self) -> None:
        self._socket = await self._session.ws_connect(self._target)
        opening = await self._socket.receive_str(timeout=TIMEOUT_SECONDS)
        self._ping_seconds = json.loads(opening[1:])["pingInterval"] / 1000
        response = await self._socket.receive_str(timeout=TIMEOUT_SECONDS)
        if response.startswith("44"):
            await self._socket.close()
            raise HandshakeRefused(json.loads(response[2:]))
        assert response == "40", response

    async def _read(self) -> None:
        async for message in self._socket:
            text = message.data
            if text.startswith("42"):
                self._on_event(*json.loads(text[2:]))
            elif text.startswith("43"):
                number, _, rest = text[2:].partition("[")
                self._acknowledged[int(number)] = json.loads("[" + rest)[0]
            elif text == "41":
                self._on_end("server disconnect")
            self._changed.set()
        self._on_end(self._socket.close_code)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._ping_seconds)
            await self._socket.send_str("2")


class SocketIo09Client(_Listener):
    """A client for Socket.IO 0.8 and 0.9 on a bare websocket, after a handshake of its own."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self.answers_heartbeats = True
        self._root = f"{url}/socket.io/1"
        self._token = token
        self._request_count = 0
        self._acknowledged: dict[int, list[Any]] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        try:
            await self._open()
        except BaseException:
            await self._session.close()
            raise
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._socket.close()
        await self._session.close()

    async def request(self, event: str, path: str, **params: str) -> Any:
        """Send ``subscribe`` or ``unsubscribe``, and return the acknowledgement. Raises TimeoutError."""
        self._request_count += 1
        number = self._request_count
        subscription = {"path": path, "method": "get", "params": params}
        await self._socket.send_str(f"5:{number}+::{json.dumps({'name': event, 'args': [subscription]})}")
        await self.until(lambda: number in self._acknowledged)
        return (self._acknowledged.pop(number) or [None])[0]

    async def _open(self) -> None:
        async with self._session.get(f"{self._root}/", params={"token": self._token}) as response:
            body = await response.text()
        if response.status != 200:
            raise HandshakeRefused(f"{response.status} {body}")
        self.handshake = body.split(":")
        self._socket = await self._session.ws_connect(f"{self._root}/websocket/{self.handshake[0]}")
        opening = await self._socket.receive_str(timeout=TIMEOUT_SECONDS)
        assert opening == "1::", opening

    async def _read(self) -> None:
        async for message in self._socket:
            await self._handle(message.data)
            self._changed.set()
        self._on_end(None)

    async def _handle(self, text: str) -> None:
        kind, number, _, data = [*text.split(":", 3), ""][:4]
        if kind == "5":
            event = json.loads(data)
            self._on_event(event["name"], *event.get("args") or [None])
            if number:  # with "+", the server wants arguments
                await self._socket.send_str(f"6:::{number}{'[]' if number.endswith('+') else ''}")
        elif kind == "6":
            number, _, rest = data.partition("+")
            self._acknowledged[int(number)] = json.loads(rest or "[]")
        elif kind == "2" and self.answers_heartbeats:
            await self._socket.send_str("2::")
        elif kind == "0":
            self._on_end("server disconnect")
