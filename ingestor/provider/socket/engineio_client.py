"""Clients of Socket.IO 1.x to 4.x, whose read loop hands data events over as raw text, without parsing them.

The library starts a task for every message: the order is lost at the first await, a message that cannot be parsed
disappears in an exception that is never reported, and a burst creates thousands of tasks. Our read loop passes whatever
is certain to be a data event to the listener as it arrived, before JSON. The library parses everything else, in order;
what it cannot parse is kept as raw text. This depends on private names of both libraries, so pyproject.toml pins them
to the minor release that tests/unit/provider/test_engine_contract.py was written for.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import aiohttp
import engineio
import socketio
from engineio import base_client, packet
from socketio import packet as socketio_packet

from ingestor.errors import ConnectionFailed, ConnectionRefused
from ingestor.provider.socket.client import (
    ERROR_EVENTS,
    MAX_CALLBACKS,
    MAX_MESSAGE_BYTES,
    MAX_UNSENT_BYTES,
    AckQueue,
    ClientListener,
    LimitExceeded,
    check_silence_seconds,
    close_reason,
    close_session,
    describe_failure,
    raw_text,
)
from ingestor.provider.socket.protocol import REFUSED_STATUSES, socketio_path

WAIT_SECONDS = 3600.0  # in connect(), of the library; the caller has a limit of its own
LATE_ERROR_SECONDS = 0.1  # from the server's CONNECT to an ERROR that revokes it, on Socket.IO 1.x and 2.x
# Beyond one of these limits the connection is closed, and the reason names it.
MAX_ATTACHMENTS = 1000  # that one message announces
MAX_ATTACHED_BYTES = MAX_MESSAGE_BYTES  # of its attachments, and of what they are as text
ATTACHMENT_SECONDS = 60.0  # until the last of them
MAX_NAMESPACE_CHARACTERS = 256  # of an event that is to be acknowledged
_PACKET_OVERHEAD_BYTES = 500  # of a queued packet beside its data, roughly

# Outside the logger tree: the library logs the URL, which contains the token, and installs handlers of its own.
_null_logger = logging.Logger("socketio, silenced", level=logging.CRITICAL + 1)
_null_logger.propagate = False


class SessionWrapper:
    """The aiohttp session that the library is given.

    It keeps two things that the library drops: the websocket, which the library does not close when the Engine.IO
    handshake fails, and the exception with which ``ws_connect`` failed. ``__getattr__`` passes everything else on,
    because a release of the library may use any other part of a session.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.error: aiohttp.ClientError | None = None
        self._session = session
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def ws_connect(self, url: str, **options: Any) -> aiohttp.ClientWebSocketResponse:
        try:
            self._socket = await self._session.ws_connect(url, **options)
        except aiohttp.ClientError as error:
            self.error = error
            raise
        return self._socket

    async def close(self, timeout_seconds: float) -> None:
        """Close the websocket, with a closing handshake if the server answers within ``timeout_seconds``."""
        await close_session(self._session, self._socket, timeout_seconds)


def event_text(event: str, args: Iterable[Any]) -> str:
    """Encode a parsed event as message text; binary arguments in base64. Raises LimitExceeded if they are too long."""
    encoded_bytes = 0

    def encode_binary(value: object) -> dict[str, str]:
        nonlocal encoded_bytes
        if not isinstance(value, bytes | bytearray):
            raise TypeError(type(value).__name__)
        encoded_bytes += len(value)  # one attachment may have thousands of placeholders
        _check_attached(encoded_bytes)
        return {"base64": base64.b64encode(value).decode()}

    return "42" + json.dumps([event, *args], ensure_ascii=False, separators=(",", ":"), default=encode_binary)


def _check_attached(size: int) -> None:
    if size > MAX_ATTACHED_BYTES:
        raise LimitExceeded(f"the attachments of a message are more than {MAX_ATTACHED_BYTES} bytes")


def event_prefixes(events: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return (prefix, event): how a message begins that has no namespace, no ack id and at least one argument."""
    return tuple((f"42{json.dumps([event], ensure_ascii=False)[:-1]},", event) for event in events)


class SendQueue(asyncio.Queue[Any]):
    """The packets that are to be sent, and their size."""

    unsent_bytes = 0

    def _put(self, item: Any) -> None:
        super()._put(item)
        self.unsent_bytes += _size(item)

    def _get(self) -> Any:
        item = super()._get()
        self.unsent_bytes -= _size(item)
        return item


def _size(item: packet.Packet | None) -> int:
    return 0 if item is None else _PACKET_OVERHEAD_BYTES + len(item.data or "")


class FastEngine(engineio.AsyncClient):  # type: ignore[misc]
    """An Engine.IO client whose read loop needs no task, no JSON and no await for a data event."""

    listener: ClientListener
    state: str
    prefixes: tuple[tuple[str, str], ...]

    def create_queue(self, *args: Any, **kwargs: Any) -> SendQueue:
        return SendQueue(*args, **kwargs)

    async def _send_packet(self, pkt: packet.Packet) -> None:
        await super()._send_packet(pkt)
        if self.queue.unsent_bytes > MAX_UNSENT_BYTES:
            self.cut("the provider does not read what is sent to it")

    def cut(self, reason: str) -> None:
        """Read no further, because the server exceeds a limit."""
        if self.state == "connected":
            self.listener.on_closed("limit", reason)
            self.state = "disconnected"  # ends the loops

    async def _read_loop_websocket(self) -> None:
        try:
            closed = await self._read_messages()
        except LimitExceeded as error:
            closed = "limit", str(error)
        except Exception as error:  # raised by the listener, which has reported it, or by the library
            closed = "lost", type(error).__name__
        self.listener.on_closed(*closed)
        await self.queue.put(None)  # ends the write loop
        if self.write_loop_task:
            await self.write_loop_task
        if self.state == "connected":
            await self._trigger_event("disconnect", self.reason.TRANSPORT_ERROR, run_async=False)
            unregister_engine(self)
            await self._reset()

    async def _read_messages(self) -> tuple[str, str]:
        """Read until the socket closes; return cause and reason. The listener then has everything that was read."""
        receive, prefixes, listener = self.ws.receive, self.prefixes, self.listener
        on_frame = listener.on_frame
        while self.state == "connected" and self.write_loop_task:
            # Does not suspend while aiohttp has more buffered (about 100 kB): a burst is read in one go.
            message = await receive()
            data = message.data
            if type(data) is str:
                for prefix, event in prefixes:
                    if data.startswith(prefix) and data.endswith("]"):
                        must_pause = on_frame(event, data)
                        break
                else:
                    if not await self._handle_text(data):
                        return "closed", "the server closed the connection"
                    must_pause = listener.congested
            elif type(data) is bytes:
                listener.on_activity()
                await self._parse_message(data, data)
                must_pause = listener.congested
            else:
                return close_reason(message)
            if must_pause:
                await listener.wait_for_space()
        return "lost", "the connection can no longer be written to"

    async def _handle_text(self, text: str) -> bool:
        """Handle a message that is not certain to be a data event. Return False for a CLOSE packet."""
        self.listener.on_activity()
        match text[:1]:
            case "1":
                return False
            case "2":
                await self._send_packet(packet.Packet(packet.PONG, text[1:]))
            case "3" | "6":
                pass  # PONG, NOOP
            case "4" if text[1:2] in tuple("0123456"):
                await self._parse_message(text, text[1:])
            case _:
                self.listener.on_data("", text)
        return True

    async def _parse_message(self, raw: str | bytes, data: str | bytes) -> None:
        try:
            # Called directly, not in a task as the library does, to keep parsed messages in order with the others.
            await self.handlers["message"](data)
        except LimitExceeded:
            raise
        except Exception:  # bad JSON, 42[], an integer of 4301 digits, an unknown packet type: keep it as it arrived
            self.listener.on_data("", raw_text(raw))


def unregister_engine(engine: engineio.AsyncClient) -> None:
    """Remove a client from the library's process-wide list, which otherwise keeps every client that was aborted."""
    if engine in base_client.connected_clients:
        base_client.connected_clients.remove(engine)


class FastEngineV3(FastEngine):
    """The same for Engine.IO revision 3: the client pings, and binary messages begin with a type byte."""

    def _get_engineio_url(self, *args: Any, **kwargs: Any) -> str:
        url: str = super()._get_engineio_url(*args, **kwargs)
        return url.removesuffix("EIO=4") + "EIO=3"

    async def send_pings(self) -> None:
        """Ping at the interval that the server requested, while connected."""
        while self.state == "connected":
            await self._send_packet(packet.Packet(packet.PING))
            await asyncio.sleep(self.ping_interval)

    async def _parse_message(self, raw: str | bytes, data: str | bytes) -> None:
        await super()._parse_message(raw, data[1:] if isinstance(data, bytes) and data[:1] == b"\x04" else data)


class FastClient(socketio.AsyncClient):  # type: ignore[misc]
    """A Socket.IO client that passes every event to its listener, whatever the event's name.

    No handler is registered by name, because a server may name an event ``connect`` or ``disconnect``. No handler
    waits, because a disconnect packet that arrived meanwhile would leave a connection that is neither open nor closed.
    """

    engine: type[FastEngine] = FastEngine
    _binary_packet: Any

    def __init__(self, listener: ClientListener, events: tuple[str, ...], session: SessionWrapper) -> None:
        super().__init__(
            reconnection=False,  # the library does not reconnect after a disconnect packet; the supervisor does
            handle_sigint=False,
            logger=_null_logger,
            engineio_logger=_null_logger,
            http_session=session,
            websocket_extra_options={"max_msg_size": MAX_MESSAGE_BYTES},
        )
        self.eio.listener = listener
        self.eio.prefixes = event_prefixes(events)
        self._listener = listener
        self._text = ""  # the message that is being parsed
        self._attached_bytes = 0  # of its attachments
        self._attachment_timer: asyncio.TimerHandle | None = None  # of the last message that announced some
        self._last_id = 0  # of our requests
        self._acks = AckQueue(listener.durable, self._send_ack)

    def _engineio_client_class(self) -> type[FastEngine]:
        return self.engine

    async def _handle_eio_message(self, data: str | bytes) -> None:
        if isinstance(data, str):
            if self._binary_packet is not None:  # its attachments never arrived; without this it would consume `data`
                self._binary_packet = None
                self._listener.on_data("", f"4{self._text}")
            self._text = data
        elif self._binary_packet is None:
            raise ValueError("an attachment without an event")
        try:
            await self._handle_within_limits(data)
        except LimitExceeded:
            self._listener.on_data("", f"4{self._text}")
            raise

    async def _handle_within_limits(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            self._attached_bytes += len(data)
            _check_attached(self._attached_bytes)
        await super()._handle_eio_message(data)
        if isinstance(data, str) and self._binary_packet is not None:
            self._attached_bytes = 0
            if (count := self._binary_packet.attachment_count) > MAX_ATTACHMENTS:
                raise LimitExceeded(f"a message announces {count} attachments, more than {MAX_ATTACHMENTS}")
            self._await_attachments()

    def _await_attachments(self) -> None:
        # One timer, which does not refer to the message: it would keep the attachments in memory.
        if self._attachment_timer is not None:
            self._attachment_timer.cancel()
        loop = asyncio.get_running_loop()
        self._attachment_timer = loop.call_later(ATTACHMENT_SECONDS, self._on_attachments_due)

    def _on_attachments_due(self) -> None:
        if self._binary_packet is not None and self.eio.state == "connected":
            self._listener.on_data("", f"4{self._text}")
            self.eio.cut(f"the attachments of a message did not arrive within {ATTACHMENT_SECONDS:g} s")

    async def _handle_event(self, namespace: str | None, id: int | None, data: Any) -> None:
        if not (isinstance(data, list) and data and isinstance(data[0], str)):
            raise ValueError("an event without a name")
        event, args = data[0], data[1:]
        if id is not None and namespace and len(namespace) > MAX_NAMESPACE_CHARACTERS:
            raise LimitExceeded(f"an event has a namespace of {len(namespace)} characters")
        seq = None
        if event in ERROR_EVENTS and namespace in (None, "/"):
            self._listener.on_provider_error(event, args)
        else:
            seq = self._listener.on_data(event, self._event_text(event, args))
        if id is not None:
            self._acks.add(seq, namespace, id)

    def _event_text(self, event: str, args: list[Any]) -> str:
        # The text as it arrived, without namespace and ack id, so that numbers keep all their digits.
        if not self._text.startswith("2"):
            return event_text(event, args)
        text = self._text[1:]
        if text.startswith("/"):
            text = text.partition(",")[2]
        return "42" + text[text.index("[") :]

    async def _send_ack(self, namespace: str | None, id: int) -> None:
        await self._send_packet(self.packet_class(socketio_packet.ACK, namespace=namespace, id=id, data=[]))

    def _generate_ack_id(self, namespace: str | None, callback: Callable[..., object]) -> int:
        # The library keeps its counter among the callbacks, as number 0, and an ACK with that number deletes it.
        self._last_id += 1
        waiting = self.callbacks.setdefault(namespace or "/", {})
        waiting[self._last_id] = callback
        if len(waiting) > MAX_CALLBACKS:
            del waiting[next(iter(waiting))]
        return self._last_id

    async def _handle_connect(self, namespace: str | None, data: Any) -> None:
        if namespace in (None, "/"):  # the library would keep any number of others
            await super()._handle_connect(namespace, data)

    async def _handle_disconnect(self, namespace: str | None) -> None:
        # The library ignores this packet until connect() has returned, and would then report a connection.
        if namespace in (None, "/"):
            self._listener.on_closed("kicked", "the server disconnected the socket")

    async def _handle_error(self, namespace: str | None, data: Any) -> None:
        self._listener.on_error_packet(data)
        if "/" not in self.namespaces:  # otherwise the library would treat an open connection as closed
            await super()._handle_error(namespace, data)


class FastClientV3(FastClient):
    """The same for Socket.IO 1.x and 2.x, which connect ``/`` unasked: requesting it would open a second socket."""

    engine = FastEngineV3

    async def _handle_eio_connect(self) -> None:
        self.sid = self.eio.sid


class EngineIoClient:
    """A client for Socket.IO 3.x and 4.x (see ``client.Client``): the library's, which we keep from doing harm."""

    max_in_flight = 200  # requests of one round
    library_class: type[FastClient] = FastClient

    def __init__(self, listener: ClientListener, events: tuple[str, ...], session: aiohttp.ClientSession) -> None:
        self._session = SessionWrapper(session)
        self.library = self.library_class(listener, events, self._session)
        self.engine: FastEngine = self.library.eio
        self._pinger: asyncio.Task[None] | None = None

    @property
    def silence_seconds(self) -> float:
        return float(self.engine.ping_interval + self.engine.ping_timeout)

    async def connect(self, url: str, token: str) -> None:
        error = await self._connect_library(url, token)
        if error is not None:
            raise self._translate(error)  # without its cause, whose text may hold the token
        check_silence_seconds(self.silence_seconds)

    async def _connect_library(self, url: str, token: str) -> Exception | None:
        try:
            await self.library.connect(
                f"{url}?token={quote(token, safe='')}",
                transports=["websocket"],
                namespaces=["/"],
                socketio_path=socketio_path(url),
                wait_timeout=WAIT_SECONDS,
            )
        except Exception as error:  # the library raises a TypeError, too, for a reply that it does not expect
            return error
        return None

    def _translate(self, error: Exception) -> ConnectionFailed:
        failure = self._session.error
        status = failure.status if isinstance(failure, aiohttp.WSServerHandshakeError) else None
        if status in REFUSED_STATUSES:
            return ConnectionRefused(f"HTTP {status}: the server refused the token")
        if status not in (None, 101):
            return ConnectionFailed(f"HTTP {status} instead of a websocket")
        return ConnectionFailed(describe_failure(failure or error, "an Engine.IO handshake"))

    async def emit(self, event: str, payload: dict[str, Any], on_ack: Callable[..., object]) -> None:
        try:
            await self.library.emit(event, payload, callback=on_ack)
        except socketio.exceptions.SocketIOError as error:
            raise ConnectionFailed("the connection is closed") from error

    def slots(self, is_repeat: bool) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.max_in_flight)

    async def abandon(self, timeout_seconds: float) -> None:
        # Not with disconnect(), which waits for a server that may be gone, and then does not get to send its packets.
        engine = self.engine
        # The write loop may swallow the cancellation (a race in wait_for); it checks the state next.
        engine.state = "disconnected"
        tasks = [task for task in (engine.read_loop_task, engine.write_loop_task, self._pinger) if task is not None]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            unregister_engine(engine)
            await self._session.close(timeout_seconds)


class EngineIo3Client(EngineIoClient):
    """The same for Socket.IO 1.x and 2.x: the client pings."""

    library_class = FastClientV3
    engine: FastEngineV3

    async def connect(self, url: str, token: str) -> None:
        await super().connect(url, token)
        check_silence_seconds(self.engine.ping_interval)
        # 2.0.0 and 2.0.1 send CONNECT before they check the token, and an ERROR right after it.
        await asyncio.sleep(LATE_ERROR_SECONDS)
        self._pinger = asyncio.create_task(self.engine.send_pings(), name="pings")
