"""A client of Socket.IO 0.8 and 0.9, on aiohttp alone: no library speaks this version any more.

It hands data events over in the form of the later versions, ``42["res",…]``, which the spool and the decoder know.
A session is one websocket: the servers resume nothing, and a second websocket of a session silences the first.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urlsplit

import aiohttp

from ingestor.errors import ConnectionFailed, ConnectionRefused, ProtocolUnsupported
from ingestor.provider.socket.client import (
    ERROR_EVENTS,
    MAX_CALLBACKS,
    MAX_MESSAGE_BYTES,
    MAX_UNSENT_BYTES,
    AckQueue,
    ClientListener,
    check_silence_seconds,
    close_reason,
    close_session,
    describe_failure,
    raw_text,
)
from ingestor.provider.socket.protocol import quote_body, read_head, socketio_path

REFUSED_STATUSES = frozenset({401, 403})  # 500 is an error of the server's authorization, not its verdict
BAD_ORIGIN = b"handshake bad origin"  # with status 403: the server requires another Origin, whatever the token is
EXPECTED_REPLY = "a Socket.IO 0.9 handshake"
SLACK_SECONDS = 5.0  # beyond the longest time that the server announces
MAX_CLOSE_SECONDS = 300.0  # a longer close timeout, such as a day, is meant for polling
ASK_SECONDS = 25.0  # between two questions to a server without heartbeats; theirs are 25 s apart
_MESSAGE_OVERHEAD_BYTES = 100  # of a message that waits to be sent, roughly
_ERRORS = {"0": "transport not supported", "1": "client not handshaken", "2": "unauthorized"}

_HANDSHAKE = re.compile(r"(.+):([0-9.]{0,9}):([0-9.]{0,9}):([^:]*)")  # session id, two timeouts, transports
_PACKET = re.compile(r"([0-8]):([0-9]{0,15})\+?:([^:]*)(?::(.*))?", re.DOTALL)  # type, id, endpoint, data
_ACK = re.compile(r"([0-9]{1,15})(?:\+(.*))?", re.DOTALL)  # id, arguments
_BEFORE_KEY = re.compile(r"[ \t\r\n]*([{,])[ \t\r\n]*(?=\")")
_BEFORE_VALUE = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_END = re.compile(r"[ \t\r\n]*\}[ \t\r\n]*")
_parse_json = json.JSONDecoder().raw_decode

WebSocket: TypeAlias = "aiohttp.ClientWebSocketResponse[Literal[False]]"  # whose text is bytes


class SocketIo09Client:
    """A client for Socket.IO 0.8 and 0.9 (see ``client.Client``)."""

    def __init__(self, listener: ClientListener, events: tuple[str, ...], session: aiohttp.ClientSession) -> None:
        self.silence_seconds = 0.0
        self._beat_seconds = 0.0
        self._listener = listener
        self._prefixes = event_prefixes(events)
        self._session = session
        self._socket: WebSocket | None = None
        self._connected = asyncio.Event()
        self._ended = False
        self._tasks: list[asyncio.Task[None]] = []
        self._unsent: asyncio.Queue[str] = asyncio.Queue()
        self._unsent_bytes = 0
        self._last_id = 0  # of our requests
        self._callbacks: dict[int, Callable[..., object]] = {}
        self._acks = AckQueue(listener.durable, self._send_ack)
        # 0.9.17 to 0.9.19 disconnect a client that has sent 100 MB, and count what they read at once again for every
        # part of a message in it: 5,000 requests count as 2.5 MB one by one, 25 MB with 20 in flight, and 250 MB with
        # 200. What is silent for hours is requested up to ten times on one connection. So 20 are in flight at a time.
        self._slots, self._repeat_slots = asyncio.Semaphore(19), asyncio.Semaphore(1)

    async def connect(self, url: str, token: str) -> None:
        try:
            return await self._connect(url, token)
        except ConnectionFailed:
            raise
        except Exception as error:  # aiohttp also fails assertions at what a server may send
            failure = describe_failure(error, EXPECTED_REPLY)
        raise ConnectionFailed(failure)  # without its cause, whose text may hold the token

    async def _connect(self, url: str, token: str) -> None:
        root = urlsplit(url)
        address = f"{root.scheme}://{root.netloc}/{socketio_path(url)}/1"
        # The servers read the token here only; without it, the address of the websocket is no secret.
        query = f"?token={quote(token, safe='')}&t={time.time_ns() // 1_000_000}"
        # A server may require an Origin. Its own address is what a browser sends from a page of that site.
        headers = {"Origin": f"{root.scheme}://{root.netloc}"}
        async with self._session.get(f"{address}/{query}", headers=headers) as response:
            session_id = self._read_handshake(response.status, await read_head(response))
            # The session has no cookie jar. A balancer may find the server that knows the session by its cookie.
            cookies = "; ".join(f"{cookie.key}={cookie.coded_value}" for cookie in response.cookies.values())
        headers |= {"Cookie": cookies} if cookies else {}
        websocket_address = f"{address}/websocket/{quote(session_id, safe='')}"
        self._socket = socket = await self._open_websocket(websocket_address, headers)
        self._tasks += [asyncio.create_task(self._read(socket)), asyncio.create_task(self._write(socket))]
        await self._connected.wait()

    async def _open_websocket(self, address: str, headers: dict[str, str]) -> WebSocket:
        try:
            return await self._session.ws_connect(
                address,
                headers=headers,
                max_msg_size=MAX_MESSAGE_BYTES,
                decode_text=False,  # or aiohttp ends the connection at text that is no UTF-8
                # No heartbeat=: the servers answer a ping of the websocket with bytes that are no frame.
            )
        except aiohttp.ServerDisconnectedError:
            reason = "the server closed the connection instead of opening a websocket, as Socket.IO 0.7 does"
        except aiohttp.WSServerHandshakeError as error:
            reason = f"HTTP {error.status} instead of a websocket"
        raise ConnectionFailed(reason)

    def _read_handshake(self, status: int, body: bytes) -> str:
        """Return the id of the session, and note how long the server may be silent."""
        if body == BAD_ORIGIN:
            raise ConnectionFailed(
                f"HTTP {status}: the server wants another origin than provider.url{quote_body(body)}"
            )
        if status in REFUSED_STATUSES:
            raise ConnectionRefused(f"HTTP {status}: the server refused the token{quote_body(body)}")
        if status in (400, 404):
            raise ProtocolUnsupported(f"HTTP {status}: no server of Socket.IO 0.9 at this URL{quote_body(body)}")
        if status != 200:
            raise ConnectionFailed(f"HTTP {status}{quote_body(body)}")
        handshake = _HANDSHAKE.fullmatch(body.decode("utf-8", "replace").strip())
        if handshake is None:
            raise ConnectionFailed(f"the server's reply is not {EXPECTED_REPLY}{quote_body(body)}")
        session_id, heartbeat_timeout, close_timeout, transports = handshake.groups()
        if "websocket" not in transports.split(","):
            raise ProtocolUnsupported(f"the server offers no websocket, only {transports[:100]}")
        self._note_timeouts(float(heartbeat_timeout or 0), float(close_timeout or 0))
        return session_id

    def _note_timeouts(self, heartbeat_seconds: float, close_seconds: float) -> None:
        # The interval of the heartbeats is not announced, and 0.8 announces a timeout that is shorter than it. Its own
        # clients wait for one of the two times; without heartbeats, we ask.
        asks = not heartbeat_seconds
        close_seconds = min(close_seconds, MAX_CLOSE_SECONDS)
        self.silence_seconds = max(heartbeat_seconds, close_seconds, 2 * ASK_SECONDS * asks) + SLACK_SECONDS
        check_silence_seconds(self.silence_seconds)
        self._beat_seconds = max(heartbeat_seconds / 3, 0.3) if heartbeat_seconds else ASK_SECONDS
        if asks:
            self._tasks.append(asyncio.create_task(self._ask(), name="questions"))

    async def emit(self, event: str, payload: dict[str, Any], on_ack: Callable[..., object]) -> None:
        if self._ended:
            raise ConnectionFailed("the connection is closed")
        self._last_id += 1
        self._callbacks[self._last_id] = on_ack
        if len(self._callbacks) > MAX_CALLBACKS:
            del self._callbacks[next(iter(self._callbacks))]
        text = json.dumps({"name": event, "args": [payload]}, separators=(",", ":"))
        self._send(f"5:{self._last_id}+::{text}")  # without the + the server acknowledges by itself

    def slots(self, is_repeat: bool) -> asyncio.Semaphore:
        return self._repeat_slots if is_repeat else self._slots

    async def abandon(self, timeout_seconds: float) -> None:
        self._ended = True
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            await close_session(self._session, self._socket, timeout_seconds)

    # --- writing ---

    def _send(self, text: str) -> None:
        """Send soon, in order: the read loop must not wait for a server that does not read."""
        self._unsent.put_nowait(text)
        self._unsent_bytes += len(text) + _MESSAGE_OVERHEAD_BYTES
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._end("limit", "the provider does not read what is sent to it")

    async def _send_ack(self, id: str) -> None:
        self._send(f"6:::{id}")

    async def _write(self, socket: WebSocket) -> None:
        with suppress(aiohttp.ClientError, OSError):  # the connection has just been closed, which the read loop reports
            while not self._ended:
                text = await self._unsent.get()
                await socket.send_str(text)
                self._unsent_bytes -= len(text) + _MESSAGE_OVERHEAD_BYTES

    async def _ask(self) -> None:
        """Send something that any server answers, regularly: it has no heartbeats."""
        while not self._ended:
            await asyncio.sleep(ASK_SECONDS)
            self._last_id += 1
            self._send(f"8:{self._last_id}::")

    async def _beat(self) -> None:
        while not self._ended:
            self._send("2::")
            await asyncio.sleep(self._beat_seconds)

    # --- reading ---

    def _end(self, cause: str, reason: str) -> None:
        self._ended = True
        self._listener.on_closed(cause, reason)

    async def _read(self, socket: WebSocket) -> None:
        try:
            closed = await self._read_messages(socket)
        except Exception as error:  # raised by the listener, which has reported it
            closed = "lost", type(error).__name__
        self._end(*closed)

    async def _read_messages(self, socket: WebSocket) -> tuple[str, str]:
        """Read until the socket closes; return cause and reason. The listener then has everything that was read."""
        receive, prefixes, listener = socket.receive, self._prefixes, self._listener
        on_frame = listener.on_frame
        while not self._ended:
            # Does not suspend while aiohttp has more buffered (about 100 kB): a burst is read in one go.
            message = await receive()
            data: Any = message.data
            if type(data) is not bytes:
                return close_reason(message)
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = repair_text(data)
            for prefix, head, size, event in prefixes:
                if text.startswith(prefix) and text.endswith("]}") and len(text) > size:
                    must_pause = on_frame(event, head + text[size - 2 : -1])
                    break
            else:
                if closed := self._handle_message(text, data, message.type is aiohttp.WSMsgType.BINARY):
                    return closed
                must_pause = listener.congested
            if must_pause:
                await self._pause()
        return "lost", "the connection can no longer be written to"

    async def _pause(self) -> None:
        """Wait until reading may continue. Heartbeats are not read meanwhile; the server accepts unasked answers."""
        beating = asyncio.create_task(self._beat(), name="heartbeats")
        try:
            await self._listener.wait_for_space()
        finally:
            beating.cancel()

    def _handle_message(self, text: str, data: bytes, is_binary: bool) -> tuple[str, str] | None:
        """Handle a message that is not certain to be a data event; return cause and reason if it ends the session."""
        if not data:  # no sign of life: coverage must end before the event that it was
            return "lost", "the server cannot send a message of 65,536 bytes: it writes its length as 0"
        self._listener.on_activity()
        packet = _PACKET.fullmatch(text)
        if packet is None or is_binary:
            self._listener.on_data("", raw_text(data) if is_binary else text)
            return None
        try:
            return self._handle_packet(*packet.groups())
        except Exception:  # bad JSON, an integer of 4301 digits, an event without a name: keep it as it arrived
            self._listener.on_data("", text)
            return None

    def _handle_packet(self, kind: str, id: str, endpoint: str, data: str | None) -> tuple[str, str] | None:
        match kind:
            case "0" if not endpoint:
                return "kicked", "the server disconnected the socket"
            case "1" if not endpoint:
                self._connected.set()
            case "2":
                self._send("2::")
            case "3" | "4" | "5":
                self._handle_event(*parse_event(kind, data or ""), id, endpoint)
            case "6":
                self._handle_ack(data or "")
            case "7":
                return self._handle_error(endpoint, data or "")
        return None

    def _handle_event(self, event: str, text: str, id: str, endpoint: str) -> None:
        seq = None
        if event in ERROR_EVENTS and not endpoint:
            self._listener.on_provider_error(event, json.loads(text[2:])[1:])
        else:
            seq = self._listener.on_data(event, text)
        if id and not endpoint:  # no other namespace is connected, and this one may have the same id
            self._acks.add(seq, id)

    def _handle_ack(self, data: str) -> None:
        ack = _ACK.fullmatch(data)
        if ack is None:
            raise ValueError("an acknowledgement of nothing")
        args = json.loads(ack[2]) if ack[2] else []
        if callback := self._callbacks.pop(int(ack[1]), None):
            callback(*(args if isinstance(args, list) else [args]))

    def _handle_error(self, endpoint: str, data: str) -> tuple[str, str] | None:
        code = data.partition("+")[0]
        text = _ERRORS.get(code, data) or "an error without a text"
        if endpoint:
            self._listener.on_provider_error("error", [f"{endpoint}: {text}"])
        elif code == "1":
            return "closed", f"{text}: the server that was reached does not know the session"
        elif self._connected.is_set():
            self._listener.on_provider_error("error", [text])
        else:
            if code == "2":
                self._listener.on_error_packet(text)
            return "closed", text
        return None


def event_prefixes(events: Iterable[str]) -> tuple[tuple[str, str, int, str], ...]:
    """Return how a data event begins here and in later versions, how long it is without arguments, and its name."""
    names = ((event, json.dumps(event, ensure_ascii=False)) for event in events)
    prefixes = ((f'5:::{{"name":{name},"args":[', f"42[{name},", event) for event, name in names)
    return tuple((prefix, head, len(prefix) + 2, event) for prefix, head, event in prefixes)


def repair_text(data: bytes) -> str:
    """Decode text that is no UTF-8: half a surrogate pair, which node 0.10.28 sends, is escaped as node 20 does it."""
    try:
        return data.decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace").decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def parse_event(kind: str, data: str) -> tuple[str, str]:
    """Return the name of an event, and its text in the form of later versions. Raises ValueError."""
    if kind == "3":
        return "message", f'42["message",{json.dumps(data, ensure_ascii=False)}]'
    if kind == "4":
        return "message", f'42["message",{data}]'
    members = split_members(data)
    name, args = members.get("name", ""), members.get("args", "[]")
    if not (name.startswith('"') and args.startswith("[")):
        raise ValueError("an event without a name")
    arguments = args[1:-1].strip()
    return json.loads(name), f"42[{name},{arguments}]" if arguments else f"42[{name}]"


def split_members(text: str) -> dict[str, str]:
    """Return the members of a JSON object as raw text, so that numbers keep all their digits. Raises ValueError."""
    members, at = dict[str, str](), 0
    while before := _BEFORE_KEY.match(text, at):
        name, at = _parse_json(text, before.end())
        colon = _BEFORE_VALUE.match(text, at)
        if colon is None or before[1] != ("," if members else "{"):
            raise ValueError("not a JSON object")
        start, at = colon.end(), _parse_json(text, colon.end())[1]
        members[name] = text[start:at]
    if not _END.fullmatch(text, at):
        raise ValueError("not a JSON object")
    return members
