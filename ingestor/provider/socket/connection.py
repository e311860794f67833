"""One socket, from its opening to its end: subscribe, stamp what comes, hand it over. Decides nothing.

A connection is never opened twice: after its end the supervisor makes another.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
import socketio
from pydantic import SecretStr

from ingestor.config.model import Subscription
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact, Frame
from ingestor.core.redaction import redactor
from ingestor.errors import ConnectionFailed, ConnectionRefused, IngestorError
from ingestor.provider.auth import Token
from ingestor.provider.socket.client import FastClient, PlainClient, SessionWrapper, client_for, unregister_engine
from ingestor.provider.socket.protocol import REFUSED_STATUSES, ProtocolVersion, socketio_path
from ingestor.provider.transport import RedirectRefused, describe_error, http_session

OPEN_SECONDS = 30.0  # from the first packet to the server's CONNECT
LATE_ERROR_SECONDS = 0.1  # from that CONNECT to an ERROR that takes it back, on Socket.IO 1.x and 2.x
ACK_SECONDS = 10.0
MAX_IN_FLIGHT = 200  # subscriptions asked for and not yet answered
CLOSE_SECONDS = 2.0  # for the other side to answer our closing; then the socket is cut
ABORT_SECONDS = 0.1  # the same where it has gone already, or seems to
GRACE_SECONDS = 0.25  # before a silence counts: after a stop of the whole process, the timer runs before the reader
MAX_TEXT_CHARACTERS = 500  # of what the provider says about an error

# To be told of each answer: the subscription, and None or the reason why not. One that comes late is told as well.
AckCallback = Callable[[Subscription, str | None], None]


class Sink(Protocol):
    """Where frames go: the spool."""

    @property
    def head(self) -> int:
        """The newest seq given out."""

    @property
    def congested(self) -> bool:
        """Whether too much waits to be synced."""

    def append(self, what: Frame | Fact) -> int:
        """Take it, without waiting; return its seq."""

    async def wait_for_space(self) -> None:
        """Wait until not congested."""

    async def durable(self, seq: int) -> None:
        """Wait until ``seq`` is synced."""


@dataclass(frozen=True, slots=True)
class CloseReason:
    """Why a connection is over."""

    cause: str  # kicked, closed, lost, mute, renewed, spool_full, stopped: for counting
    reason: str  # for people; scrubbed


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What the connections of one group have in common."""

    url: str  # the API's root
    path: str  # of every subscription on it
    params: str  # those besides ticker and user_id, canonical JSON
    events: tuple[str, ...]  # that carry data
    tls_context: ssl.SSLContext | None = None
    proxy: SecretStr | None = None


def sanitize(text: object) -> str:
    """Text from outside as it may be shown: without secrets, cut at 500 characters."""
    return redactor.scrub(text if isinstance(text, str) else str(text))[:MAX_TEXT_CHARACTERS]


def error_text(answer: object) -> str:
    """What an error object says. It has a ``message`` or a ``type`` at least; its shape is open."""
    if isinstance(answer, dict):
        said = [str(answer[name]) for name in ("type", "message") if answer.get(name)]
        return sanitize(": ".join(said) or json.dumps(answer, default=str))
    return sanitize(answer)


class Connection:
    """One socket's life. It is also the listener of its client: see ``client.Listener``."""

    def __init__(
        self, line: ConnectionSettings, dialect: ProtocolVersion, sink: Sink, record: Callable[[Fact], object]
    ) -> None:
        self.id = secrets.token_hex(6)
        self.token: Token | None = None
        self.frames = 0
        self.last_frame_us: int | None = None
        self.last_activity_us = wall_us()  # the last sign of life; before the first, when we began
        self.last_activity_at = boottime()
        self.last_frame_at = self.last_activity_at  # likewise
        self.opened_at: float | None = None
        self.ended_at: float | None = None
        self.protocol_version = dialect
        self.durable = sink.durable
        self._line = line
        self._sink = sink
        self._record = record
        self._append = sink.append
        self._door: SessionWrapper | None = None
        self._client: FastClient | PlainClient | None = None
        self._end: asyncio.Future[CloseReason] = asyncio.get_running_loop().create_future()
        self._refusal: str | None = None
        self._paused = False
        self._watch: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None

    async def open(self, token: Token) -> None:
        """Connect, once.

        Raises:
            ConnectionRefused: the server does not take the token. ConnectionFailed: anything else.
        """
        self.token = token
        try:
            await self._connect(token)
        except IngestorError:
            await self.close("lost", "never opened")
            raise
        except BaseException:
            await self.close("stopped", "stopped while opening")
            raise
        self.opened_at = self.last_frame_at = boottime()

    async def subscribe(self, subscriptions: Iterable[Subscription], answered: AckCallback) -> None:
        """Ask for all, a bounded number at a time. No answer within 10 s is one too, unless the connection ended."""
        await self._ask("subscribe", subscriptions, answered)

    async def unsubscribe(self, subscriptions: Iterable[Subscription], answered: AckCallback) -> None:
        """The same, to be left alone."""
        await self._ask("unsubscribe", subscriptions, answered)

    async def closed(self) -> CloseReason:
        """Wait for the end, and tell why. Raises what the sink raised, if that was the end."""
        return await asyncio.shield(self._end)

    @property
    def alive(self) -> bool:
        """Whether it is not over yet."""
        return not self._end.done()

    async def close(self, cause: str, reason: str) -> None:
        """Close in order if there is somebody to answer, else cut. Safe to call more than once."""
        polite = self.alive and self.opened_at is not None
        self.ended(cause, reason)
        client, self._client = self._client, None
        if client is not None:
            await _abandon(client, self._beat)
        door, self._door = self._door, None
        if door is not None:
            await door.close(CLOSE_SECONDS if polite else ABORT_SECONDS)
        if not self._end.cancelled():
            self._end.exception()  # whoever closes need not ask why

    # --- the way in: what the client hears ---

    @property
    def congested(self) -> bool:
        return self._sink.congested

    def take(self, event: str, text: str) -> int:
        # No await anywhere here: order and speed depend on it.
        now = time.time_ns() // 1000
        self.last_activity_us = self.last_frame_us = now
        self.last_activity_at = self.last_frame_at = boottime()
        self.frames += 1
        line = self._line
        try:
            return self._append(Frame(now, self.id, "stream", event, line.path, line.params, text))
        except Exception as error:
            self._break(error)
            raise

    def heard(self) -> None:
        self.last_activity_us = wall_us()
        self.last_activity_at = boottime()

    async def wait_for_space(self) -> None:
        self._paused = True
        self._record(Fact("paused", wall_us(), {"connection": self.id, "reason": "the spool is behind"}))
        try:
            await self._sink.wait_for_space()
        finally:
            self._paused = False
            self.last_activity_at = boottime()  # we did not listen: that is no silence of the other side's
        self._record(Fact("resumed", wall_us(), {"connection": self.id}))

    def complaint(self, event: str, args: list[Any]) -> None:
        text = "; ".join(error_text(arg) for arg in args)[:MAX_TEXT_CHARACTERS]
        detail = {"connection": self.id, "path": self._line.path, "event": event, "text": text}
        self._record(Fact("provider_error", wall_us(), detail))

    def refused(self, answer: object) -> None:
        if self.opened_at is not None:
            self.complaint("error", [answer])
            return
        # Nothing was asked for yet, so it can only be about the connection.
        self._refusal = error_text(answer)

    def ended(self, cause: str, reason: str) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if not self._end.done():
            self.ended_at = boottime()
            self._end.set_result(CloseReason(cause, sanitize(reason)))

    def _break(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)

    # --- opening ---

    async def _connect(self, token: Token) -> None:
        self._door = SessionWrapper(http_session(self._line.tls_context, self._line.proxy))
        self._client = client_for(self.protocol_version, self, self._line.events, self._door)
        # The library waits for the server's OPEN without a limit, and for its CONNECT even when the socket has ended.
        attempt = asyncio.create_task(self._handshake(self._client, token))
        try:
            either: list[asyncio.Future[Any]] = [attempt, self._end]
            await asyncio.wait(either, timeout=OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            self._judge(attempt.exception() if attempt.done() else None)
            if self._end.done():
                raise ConnectionFailed(self._end.result().reason)
            if not attempt.done():
                raise ConnectionFailed(f"no answer within {OPEN_SECONDS:g} s")
        finally:
            attempt.cancel()
            await asyncio.wait({attempt})
            if not attempt.cancelled():
                attempt.exception()
        if self.protocol_version is ProtocolVersion.SOCKET_IO_2:
            await self._verdict()
        self._guard()

    async def _verdict(self) -> None:
        """2.0.0 and 2.0.1 say CONNECT before they have looked at the token, and what they think of it right after."""
        await asyncio.wait([self._end], timeout=LATE_ERROR_SECONDS)
        self._judge(None)

    async def _handshake(self, client: socketio.AsyncClient, token: Token) -> None:
        await client.connect(
            f"{self._line.url}?token={quote(token.value, safe='')}",
            transports=["websocket"],
            namespaces=["/"],
            socketio_path=socketio_path(self._line.url),
            wait_timeout=OPEN_SECONDS,
        )

    def _judge(self, error: BaseException | None) -> None:
        if self._refusal is not None:
            raise ConnectionRefused(f"the server refused the token: {self._refusal}")
        if error is None:
            return
        failure = self._door.failure if self._door is not None else None
        status = failure.status if isinstance(failure, aiohttp.WSServerHandshakeError) else None
        if status in REFUSED_STATUSES:
            raise ConnectionRefused(f"HTTP {status}: the server refused the token")
        if status not in (None, 101):
            raise ConnectionFailed(f"HTTP {status} where a websocket was asked for")
        raise ConnectionFailed(_why(failure or error))  # without its cause, whose text may hold the token

    def _guard(self) -> None:
        client = self._client
        if isinstance(client, FastClient):  # the plain one has the library's own, dearer watch
            self._silence_check(client.eio.ping_interval + client.eio.ping_timeout)
        if client is not None and self.protocol_version is ProtocolVersion.SOCKET_IO_2:
            self._beat = asyncio.create_task(client.eio.beat(), name=f"pings of {self.id}")

    def _silence_check(self, limit_seconds: float, grace: bool = False) -> None:
        # One timer, instead of a timeout round every read.
        left = limit_seconds - (boottime() - self.last_activity_at)
        if self._paused:
            left = limit_seconds
        if left <= 0 and grace:
            self.ended("mute", f"nothing heard for {limit_seconds:g} s")
            return
        wait = left if left > 0 else GRACE_SECONDS
        self._watch = asyncio.get_running_loop().call_later(wait, self._silence_check, limit_seconds, left <= 0)

    # --- asking ---

    async def _ask(self, verb: str, subscriptions: Iterable[Subscription], answered: AckCallback) -> None:
        slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        todo = iter(subscriptions)
        async with asyncio.TaskGroup() as group:
            # The next is looked at when it is its turn, and not before: meanwhile it may have become unwanted.
            while await slots.acquire() and self.alive and (one := next(todo, None)):
                group.create_task(self._ask_one(verb, one, answered)).add_done_callback(lambda _: slots.release())

    async def _ask_one(self, verb: str, subscription: Subscription, answered: AckCallback) -> None:
        heard = asyncio.Event()
        if not await self._emit(verb, subscription, partial(_answer, subscription, answered, heard)):
            return
        try:
            async with asyncio.timeout(ACK_SECONDS):
                await heard.wait()
        except TimeoutError:
            if self.alive:
                answered(subscription, f"not acknowledged within {ACK_SECONDS:g} s")

    async def _emit(self, verb: str, subscription: Subscription, callback: Callable[..., None]) -> bool:
        """False: there is no connection to ask on any more."""
        if self._client is None or not self.alive:
            return False
        wish = {"path": subscription.path, "method": subscription.method, "params": dict(subscription.params)}
        try:
            await self._client.emit(verb, wish, callback=callback)
        except socketio.exceptions.SocketIOError:
            return False  # it has just ended, and says so elsewhere
        return True


def _answer(subscription: Subscription, answered: AckCallback, heard: asyncio.Event, *args: object) -> None:
    heard.set()
    error = args[0] if args else None
    # As the provider's own language has it: `callback(err)`, where nothing, false and "" are no error.
    answered(subscription, None if error in (None, False, "") else error_text(error))


async def _abandon(client: socketio.AsyncClient, beat: asyncio.Task[None] | None) -> None:
    # Not by its own disconnect(), which waits on a server that may have gone and never gets to send its packets.
    engine = client.eio
    engine.state = (
        "disconnected"  # its write loop may swallow the cancellation (a race of wait_for), and looks here next
    )
    tasks = [task for task in (engine.read_loop_task, engine.write_loop_task, beat) if task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    unregister_engine(engine)


def _why(error: BaseException) -> str:
    if isinstance(error, RedirectRefused):
        return str(error)
    words = describe_error(error)
    # One word is a class's name: no error of the network, but the library choking on what came instead of OPEN.
    return words if " " in words else f"the server did not begin as Engine.IO does ({words})"
