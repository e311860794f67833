"""What the clients of all Socket.IO versions have in common: their interface, their listener and their limits."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp

from ingestor.errors import ConnectionFailed, IngestorError
from ingestor.provider.transport import describe_error

MAX_MESSAGE_BYTES = 64 << 20  # aiohttp's default of 4 MiB would close the connection on every larger message
MAX_UNSENT_BYTES = 1 << 20  # that the server does not read; beyond it the connection is closed
MAX_CALLBACKS = 10_000  # of requests that the server has not acknowledged; the oldest are dropped
SILENCE_SECONDS = (0.05, 7200.0)  # that a server may announce, and between two pings that the client sends

ERROR_EVENTS = frozenset({"err", "error"})


class LimitExceeded(Exception):
    """The server exceeds a limit; the message says which. Close the connection."""


class ClientListener(Protocol):
    """Receives what a client reads. Only ``wait_for_space`` and ``durable`` may wait."""

    @property
    def congested(self) -> bool:
        """Whether reading must pause."""

    async def wait_for_space(self) -> None:
        """Wait until reading may continue."""

    async def durable(self, seq: int) -> None:
        """Wait until the entry ``seq`` is synced to disk."""

    def on_activity(self) -> None:
        """Note that something other than a data event arrived: the server is alive."""

    def on_frame(self, event: str, text: str) -> bool:
        """Store a data event as raw text, soon. Return whether reading must pause."""

    def on_data(self, event: str, text: str) -> int:
        """Store a data event as raw text and return its seq. ``event`` is "" for text that cannot be parsed."""

    def on_provider_error(self, event: str, args: list[Any]) -> None:
        """Report an error event of the provider. The connection stays open."""

    def on_error_packet(self, error: object) -> None:
        """Handle an ERROR packet: the server rejects the connection or, on 1.x and 2.x, reports an error on it."""

    def on_closed(self, cause: str, reason: str) -> None:
        """Note that the socket is closed. Only the first call counts."""


class Client(Protocol):
    """One socket to the server, in one version of the protocol. It is connected once, and owns its aiohttp session."""

    @property
    def silence_seconds(self) -> float:
        """How long the server may be silent before it counts as gone. Known once connected."""

    async def connect(self, url: str, token: str) -> None:
        """Connect to the API's root ``url``, without a limit of time.

        Raises ConnectionRefused if the server refuses the token, else ConnectionFailed; the listener may know more.
        """

    async def emit(self, event: str, payload: dict[str, Any], on_ack: Callable[..., object]) -> None:
        """Send an event; ``on_ack`` is called with the server's answer. Raises ConnectionFailed once closed."""

    def slots(self, is_repeat: bool) -> asyncio.Semaphore:
        """Return the limit of requests in flight for one round. A repeat requests what is subscribed already."""

    async def abandon(self, timeout_seconds: float) -> None:
        """Stop reading and writing at once; then close the websocket within this time. May be called more than once."""


class AckQueue:
    """Acknowledges events of the server in order, each once its entry is durable."""

    def __init__(self, durable: Callable[[int], Awaitable[None]], send: Callable[..., Awaitable[None]]) -> None:
        self._durable = durable
        self._send = send
        self._waiting: deque[tuple[int | None, tuple[Any, ...]]] = deque()
        self._task: asyncio.Task[None] | None = None  # one for all: a burst must not create thousands

    def add(self, seq: int | None, *ack: Any) -> None:
        """Call ``send(*ack)`` once ``seq`` is durable; None: nothing was stored."""
        self._waiting.append((seq, ack))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="acknowledgements")

    async def _run(self) -> None:
        while self._waiting:
            seq, ack = self._waiting.popleft()
            if seq is not None:
                try:
                    await self._durable(seq)
                except IngestorError:
                    continue  # not durable, so not acknowledged; the spool reports the error to the service
            await self._send(*ack)


def raw_text(data: str | bytes) -> str:
    """Return a message as text; binary data as Engine.IO itself encodes it in text: ``b`` and base64."""
    return data if isinstance(data, str) else "b" + base64.b64encode(data).decode()


def close_reason(message: aiohttp.WSMessage | aiohttp.http.WSMessageTextBytes) -> tuple[str, str]:
    """Return cause and reason of a message that is not data."""
    match message.type:
        case aiohttp.WSMsgType.CLOSE:
            return "closed", f"the server closed the websocket ({message.data})"
        case aiohttp.WSMsgType.ERROR:
            return "lost", f"websocket: {message.data}"
        case _:
            return "lost", "the connection was cut"


async def close_session(
    session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse[Any] | None, timeout_seconds: float
) -> None:
    """Close a session and its websocket, with a closing handshake if the server answers in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            if socket is not None:
                await socket.close()
    except TimeoutError:
        pass  # aiohttp aborts the transport when close() is cancelled
    finally:
        await session.close()


def describe_failure(error: BaseException, expected: str) -> str:
    """Return why a connection could not be opened, in words. ``expected`` is what the reply should be."""
    text = describe_error(error)
    # A single word is the name of an exception class: not a network error, but a reply that cannot be parsed.
    return text if " " in text else f"the server's reply is not {expected} ({text})"


def check_silence_seconds(seconds: float) -> None:
    """Raise ConnectionFailed for a limit that the server cannot mean, such as a negative one."""
    shortest, longest = SILENCE_SECONDS
    if not shortest <= seconds <= longest:
        raise ConnectionFailed(f"the server announces an unusable ping interval ({seconds:g} s)")
