"""The Socket.IO clients: the library's own, and a lean one that takes data events out of its read loop as text.

The library makes a task of every message: order is lost at the first await, what cannot be parsed vanishes in an
exception nobody sees, and a burst piles up thousands of tasks. The lean client reads on its own: what surely is a data
event goes to the listener as it came, before JSON; everything else is parsed by the library, in order, and kept raw if
it cannot be. That leans on private names, listed in tests/unit/provider/test_engine_contract.py; with a release that
the test has not seen, the plain client is used.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Protocol

import aiohttp
import engineio
import socketio
from engineio import base_client, packet
from socketio import packet as socketio_packet

from ingestor.errors import IngestorError
from ingestor.provider.socket.protocol import ProtocolVersion

# Releases that the contract test was run with.
TESTED_ENGINEIO = ("4.15.",)
TESTED_SOCKETIO = ("5.18.",)
MAX_MESSAGE_BYTES = 64 << 20  # aiohttp's own limit of 4 MiB would end the connection, again and again
ERROR_EVENTS = frozenset({"err", "error"})

# Of nobody's tree: the library logs the URL, which holds the token, and installs handlers of its own.
_silence = logging.Logger("socketio, silenced", level=logging.CRITICAL + 1)
_silence.propagate = False


class ClientListener(Protocol):
    """Whom a client tells what it hears. Nothing here waits except ``wait_for_space`` and ``durable``."""

    @property
    def congested(self) -> bool:
        """Whether reading must pause."""

    async def wait_for_space(self) -> None:
        """Wait until reading may go on."""

    async def durable(self, seq: int) -> None:
        """Wait until what was taken as ``seq`` is safe."""

    def heard(self) -> None:
        """Something came that is not a data event: the other side is alive."""

    def take(self, event: str, text: str) -> int:
        """A data event, raw; ``event`` is "" for what cannot be read. Returns its seq."""

    def complaint(self, event: str, args: list[Any]) -> None:
        """The provider reports an error; the connection goes on."""

    def refused(self, answer: object) -> None:
        """The server does not let us in; or it has, and reports an error as 1.x and 2.x do, in the same way."""

    def ended(self, cause: str, reason: str) -> None:
        """The socket is over; only the first call counts."""


class SessionWrapper:
    """What the library takes for its HTTP session: ours, which keeps the websocket that the library forgets when the
    greeting fails, and the reason why there is none, which it hides.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.failure: aiohttp.ClientError | None = None
        self._session = session
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)  # whatever else a release may ask of a session

    async def ws_connect(self, url: str, **options: Any) -> aiohttp.ClientWebSocketResponse:
        try:
            self._socket = await self._session.ws_connect(url, **options)
        except aiohttp.ClientError as failure:
            self.failure = failure
            raise
        return self._socket

    async def close(self, seconds: float) -> None:
        """Close the websocket in order if the other side answers within ``seconds``, else cut it."""
        try:
            async with asyncio.timeout(seconds):
                if self._socket is not None:
                    await self._socket.close()
        except TimeoutError:
            pass  # cut by now: aiohttp drops the transport of a close that is cancelled
        await self._session.close()


def known_release() -> bool:
    """Whether the installed libraries are among those that the lean client was tested with."""
    return version("python-engineio").startswith(TESTED_ENGINEIO) and version("python-socketio").startswith(
        TESTED_SOCKETIO
    )


def client_for(
    dialect: ProtocolVersion, listener: ClientListener, events: Iterable[str], door: SessionWrapper
) -> FastClient | PlainClient:
    """A fresh client for one connection. ``door`` stays the caller's to close."""
    chosen = _CLIENTS[dialect, known_release()]
    return chosen(listener, tuple(events), door)


def raw_text(data: str | bytes) -> str:
    """A message as text. Binary takes the form that Engine.IO itself gives it in text: ``b`` and base64."""
    return data if isinstance(data, str) else "b" + base64.b64encode(data).decode()


def event_text(event: str, args: Iterable[Any]) -> str:
    """An event that the library has parsed, as the text of a message again; binary arguments in base64."""
    return "42" + json.dumps([event, *args], ensure_ascii=False, separators=(",", ":"), default=_binary)


def _binary(value: object) -> dict[str, str]:
    if isinstance(value, bytes | bytearray):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(type(value).__name__)


def event_prefixes(events: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """How the text of each event begins when it has no namespace, no acknowledgement and an argument."""
    return tuple((f"42{json.dumps([event], ensure_ascii=False)[:-1]},", event) for event in events)


def _why_closed(message: aiohttp.WSMessage) -> tuple[str, str]:
    match message.type:
        case aiohttp.WSMsgType.CLOSE:
            return "closed", f"the server closed the websocket ({message.data})"
        case aiohttp.WSMsgType.ERROR:
            return "lost", f"websocket: {message.data}"
        case _:
            return "lost", "the connection was cut"


class FastEngine(engineio.AsyncClient):  # type: ignore[misc]
    """Engine.IO with a read loop that makes no task, no JSON and no await of a data event."""

    listener: ClientListener
    fast: tuple[tuple[str, str], ...]

    async def _read_loop_websocket(self) -> None:
        try:
            why = await self._listen()
        except Exception as error:  # the listener failed, and has said so itself, or the library did
            why = "lost", type(error).__name__
        self.listener.ended(*why)
        await self.queue.put(None)  # ends the write loop
        if self.write_loop_task:
            await self.write_loop_task
        if self.state == "connected":
            await self._trigger_event("disconnect", self.reason.TRANSPORT_ERROR, run_async=False)
            unregister_engine(self)
            await self._reset()

    async def _listen(self) -> tuple[str, str]:
        """Read until the socket ends; return why. Everything heard so far is with the listener by then."""
        receive, fast, listener = self.ws.receive, self.fast, self.listener
        take = listener.take
        while self.state == "connected" and self.write_loop_task:
            # Does not suspend while aiohttp has more: a burst is read in one go, as long as its buffer (some 100 kB).
            message = await receive()
            data = message.data
            if type(data) is str:
                for prefix, event in fast:
                    if data.startswith(prefix) and data.endswith("]"):
                        take(event, data)
                        break
                else:
                    if not await self._other(data):
                        return "closed", "the server closed the connection"
            elif type(data) is bytes:
                listener.heard()
                await self._message(data, data)
            else:
                return _why_closed(message)
            if listener.congested:
                await listener.wait_for_space()
        return "lost", "the connection can no longer be written to"

    async def _other(self, text: str) -> bool:
        """Handle what is not surely a data event. False: the server said goodbye."""
        self.listener.heard()
        match text[:1]:
            case "1":
                return False
            case "2":
                await self._send_packet(packet.Packet(packet.PONG, text[1:]))
            case "3" | "6":
                pass  # answer to our ping, no operation
            case "4" if text[1:2] in tuple("0123456"):
                await self._message(text, text[1:])
            case _:
                self.listener.take("", text)
        return True

    async def _message(self, raw: str | bytes, data: str | bytes) -> None:
        try:
            # Called here, and not in a task as the library does, so that what it parses keeps its place among the rest.
            await self.handlers["message"](data)
        except Exception:  # bad JSON, 42[], an integer of 4301 digits, no such type: whatever it is, it came
            self.listener.take("", raw_text(raw))


def unregister_engine(engine: engineio.AsyncClient) -> None:
    """Take a client off the library's process-wide list, where one that was not closed by its rules stays for ever."""
    if engine in base_client.connected_clients:
        base_client.connected_clients.remove(engine)


class _EngineV3(engineio.AsyncClient):  # type: ignore[misc]
    """Engine.IO revision 3, where the client pings."""

    def _get_engineio_url(self, *args: Any, **kwargs: Any) -> str:
        url: str = super()._get_engineio_url(*args, **kwargs)
        return url.removesuffix("EIO=4") + "EIO=3"

    async def beat(self) -> None:
        """Ping as often as the server asked for, for as long as there is a connection."""
        while self.state == "connected":
            await self._send_packet(packet.Packet(packet.PING))
            await asyncio.sleep(self.ping_interval)


class FastEngineV3(_EngineV3, FastEngine):
    """The lean read loop on revision 3, whose binary messages begin with a byte for their type."""

    async def _message(self, raw: str | bytes, data: str | bytes) -> None:
        await super()._message(raw, data[1:] if isinstance(data, bytes) and data[:1] == b"\x04" else data)


class FastClient(socketio.AsyncClient):  # type: ignore[misc]
    """Socket.IO that tells its listener of every event, whatever its name: no handler is registered by name, since a
    server may call an event ``connect`` or ``disconnect``, and no handler waits, since a kick meanwhile would leave a
    connection that is neither dead nor alive.
    """

    engine: type[FastEngine] = FastEngine
    _binary_packet: Any

    def __init__(self, listener: ClientListener, events: tuple[str, ...], door: SessionWrapper) -> None:
        super().__init__(**_options(door))
        self.eio.listener = listener
        self.eio.fast = event_prefixes(events)
        self._listener = listener
        self._text = ""  # the message being parsed
        self._confirmations: set[asyncio.Task[None]] = set()

    def _engineio_client_class(self) -> type[FastEngine]:
        return self.engine

    async def _handle_eio_message(self, data: str | bytes) -> None:
        if isinstance(data, str):
            if self._binary_packet is not None:  # its attachments never came: it would swallow what comes now
                self._binary_packet = None
                self._listener.take("", f"4{self._text}")
            self._text = data
        elif self._binary_packet is None:
            raise ValueError("an attachment that belongs to nothing")
        await super()._handle_eio_message(data)

    async def _handle_event(self, namespace: str | None, id: int | None, data: Any) -> None:
        if not (isinstance(data, list) and data and isinstance(data[0], str)):
            raise ValueError("an event without a name")
        event, args = data[0], data[1:]
        seq = None
        if event in ERROR_EVENTS and namespace in (None, "/"):
            self._listener.complaint(event, args)
        else:
            seq = self._listener.take(event, self._plain_text(event, args))
        if id is not None:
            task = asyncio.create_task(self._confirm(namespace, id, seq))
            self._confirmations.add(task)
            task.add_done_callback(self._confirmations.discard)

    def _plain_text(self, event: str, args: list[Any]) -> str:
        # As it came, without namespace and acknowledgement: numbers keep their digits.
        if not self._text.startswith("2"):
            return event_text(event, args)
        rest = self._text[1:]
        if rest.startswith("/"):
            rest = rest.partition(",")[2]
        return "42" + rest[rest.index("[") :]

    async def _confirm(self, namespace: str | None, id: int, seq: int | None) -> None:
        if seq is not None:
            try:
                await self._listener.durable(seq)
            except IngestorError:
                return  # not safe, so not acknowledged; the spool has told the service
        await self._send_packet(self.packet_class(socketio_packet.ACK, namespace=namespace, id=id, data=[]))

    async def _handle_disconnect(self, namespace: str | None) -> None:
        # The library ignores this while connect() has not returned, and would then call a dead connection connected.
        if namespace in (None, "/"):
            self._listener.ended("kicked", "the server disconnected the socket")

    async def _handle_error(self, namespace: str | None, data: Any) -> None:
        self._listener.refused(data)
        if "/" not in self.namespaces:  # else the library would take a live connection for a dead one
            await super()._handle_error(namespace, data)


class _ClientV3(socketio.AsyncClient):  # type: ignore[misc]
    """Socket.IO 1.x and 2.x, where the server connects ``/`` by itself; asking for it would make a second socket."""

    async def _handle_eio_connect(self) -> None:
        self.sid = self.eio.sid


class FastClientV3(_ClientV3, FastClient):
    engine = FastEngineV3


class PlainEngine(engineio.AsyncClient):  # type: ignore[misc]
    """The library's own read loop, which tells of every packet, and waits between two while there is no room."""

    listener: ClientListener

    async def _receive_packet(self, pkt: packet.Packet) -> None:
        # The one private name here. Where a release has another, this is never called: signs of life are then those of
        # data events only, and nothing pauses.
        self.listener.heard()
        await super()._receive_packet(pkt)
        if self.listener.congested:
            await self.listener.wait_for_space()


class PlainEngine3(_EngineV3, PlainEngine):
    """The same on revision 3."""


class PlainClient(socketio.AsyncClient):  # type: ignore[misc]
    """The library as its documentation describes it, for a release whose inside we do not know. Better than nothing:

    - what the library cannot parse is lost, and numbers may lose digits: what is kept was parsed and written anew;
    - events wait in tasks of their own, so that a pause lets those come that were read before it;
    - events named connect or disconnect are taken for the library's own;
    - a kick while connecting goes unnoticed, but for the silence after it;
    - the end of a connection is told as the library words it: its cause is always ``lost``.
    """

    engine: type[PlainEngine] = PlainEngine

    def __init__(self, listener: ClientListener, events: tuple[str, ...], door: SessionWrapper) -> None:
        super().__init__(**_options(door))
        self.eio.listener = listener
        self._listener = listener
        self.on("*", self._on_event)
        self.on("connect_error", listener.refused)
        self.on("disconnect", self._on_disconnect)

    def _engineio_client_class(self) -> type[PlainEngine]:
        return self.engine

    async def _on_event(self, event: str, *args: Any) -> None:
        if event in ERROR_EVENTS:
            self._listener.complaint(event, list(args))
            return
        # Handed over before the first await: each event has its own task, and awaiting would lose their order.
        seq = self._listener.take(event, event_text(event, args))
        await self._listener.durable(seq)

    def _on_disconnect(self, reason: object = "") -> None:
        self._listener.ended("lost", str(reason))


class PlainClient3(_ClientV3, PlainClient):
    engine = PlainEngine3


_CLIENTS: dict[tuple[ProtocolVersion, bool], type[FastClient] | type[PlainClient]] = {
    (ProtocolVersion.SOCKET_IO_4, True): FastClient,
    (ProtocolVersion.SOCKET_IO_2, True): FastClientV3,
    (ProtocolVersion.SOCKET_IO_4, False): PlainClient,
    (ProtocolVersion.SOCKET_IO_2, False): PlainClient3,
}


def _options(door: SessionWrapper) -> dict[str, Any]:
    return {
        "reconnection": False,  # it does not come back from a kick, and gives up for good on others; see supervisor
        "handle_sigint": False,
        "logger": _silence,
        "engineio_logger": _silence,
        "http_session": door,
        "websocket_extra_options": {"max_msg_size": MAX_MESSAGE_BYTES},
    }
