"""One socket, from opening to close: subscribe, timestamp what arrives, append it to the spool.

A connection is opened once; the connection group creates a new one after it is closed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import SecretStr

from ingestor.config.model import Subscription
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact, Frame, FrameRun
from ingestor.core.redaction import redactor
from ingestor.errors import ConnectionFailed, ConnectionRefused, IngestorError
from ingestor.provider.auth import Token
from ingestor.provider.socket.client import Client
from ingestor.provider.socket.client_factory import make_client
from ingestor.provider.socket.protocol import ProtocolVersion
from ingestor.provider.transport import http_session

OPEN_SECONDS = 30.0  # from the first request to the server's CONNECT
ACK_SECONDS = 10.0
CLOSE_SECONDS = 2.0  # for the server to answer the closing handshake; then the socket is aborted
ABORT_SECONDS = 0.1  # the same where the server is gone or seems to be
BACKLOG_SECONDS = 1.0  # after a pause, in which what is read may be what had arrived before the pause
GRACE_SECONDS = 0.25  # before a silence counts: after a stop of the whole process, the timer runs before the reader
MAX_TEXT_CHARACTERS = 500  # of an error text of the provider

# Called with each acknowledgement: the subscription, and None or the error. Also called for one that comes late.
AckCallback = Callable[[Subscription, str | None], None]


class Sink(Protocol):
    """Where frames go: the spool."""

    @property
    def head(self) -> int:
        """The newest seq."""

    @property
    def congested(self) -> bool:
        """Whether too much waits to be synced."""

    def append(self, item: FrameRun | Frame | Fact) -> int:
        """Append without waiting; return the last seq."""

    def begin_run(self, end: Callable[[], object]) -> None:
        """Call ``end``, which appends a run, before anything else is appended, and in this pass of the loop."""

    async def wait_for_space(self) -> None:
        """Wait until not congested."""

    async def durable(self, seq: int) -> None:
        """Wait until ``seq`` is synced."""


@dataclass(frozen=True, slots=True)
class CloseReason:
    """Why a connection is closed."""

    cause: str  # kicked, closed, lost, limit, mute, renewed, spool_full, standby, stopped: a metric label
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
    """Return text from outside as it may be shown: without secrets, at most 500 characters."""
    return redactor.scrub(text if isinstance(text, str) else str(text))[:MAX_TEXT_CHARACTERS]


def error_text(error: object) -> str:
    """Return the text of the provider's error object, which usually has a ``type`` and a ``message``."""
    if isinstance(error, dict):
        parts = [str(error[name]) for name in ("type", "message") if error.get(name)]
        return sanitize(": ".join(parts) or json.dumps(error, default=str))
    return sanitize(error)


class Connection:
    """One socket, and the listener of its client (see ``client.ClientListener``)."""

    def __init__(
        self,
        settings: ConnectionSettings,
        protocol_version: ProtocolVersion,
        sink: Sink,
        record: Callable[[Fact], object],
        came_at: Callable[[], float] = boottime,
    ) -> None:
        """``came_at`` returns a boottime at or before which nothing that is read now had come."""
        self.id = secrets.token_hex(6)
        self.token: Token | None = None
        self._ended_frames = 0  # of runs that have ended
        self._run_event: str | None = None  # of the run under way: frames that came in this pass of the loop
        self._texts: list[str] = []  # of that
        self.last_frame_us: int | None = None
        self.last_frame_at = boottime()  # before the first, and after a standstill: since when one is expected
        self._read_at = self.last_frame_at  # when anything was read; likewise
        self._came_at = self.last_frame_at  # when that came, or before; likewise
        self._resumed_at = 0.0  # when reading last went on after a pause
        self._heard_before_pause_at = 0.0
        self.opened_at: float | None = None
        self.closed_at: float | None = None
        self.protocol_version = protocol_version
        self.durable = sink.durable
        self._settings = settings
        self._sink = sink
        self._record = record
        self._clock = came_at
        self._client: Client | None = None
        self._close_reason: asyncio.Future[CloseReason] = asyncio.get_running_loop().create_future()
        self._rejection: str | None = None
        self._paused = False
        self._silence_timer: asyncio.TimerHandle | None = None

    async def open(self, token: Token) -> None:
        """Connect, once. Raises ConnectionRefused if the server rejects the token, else ConnectionFailed."""
        self.token = token
        try:
            await self._connect(token)
        except IngestorError:
            await self.close("lost", "could not be opened")
            raise
        except BaseException:
            await self.close("stopped", "stopped while opening")
            raise
        self.opened_at = self.last_frame_at = boottime()

    async def subscribe(self, subscriptions: Iterable[Subscription], on_ack: AckCallback) -> None:
        """Subscribe to all, a bounded number at a time. A missing ack counts as an error after 10 s, while open."""
        await self._request("subscribe", subscriptions, on_ack)

    async def resubscribe(self, subscriptions: Iterable[Subscription], on_ack: AckCallback) -> None:
        """Subscribe again to what is subscribed already, in the same way, but as sparingly as the server needs it."""
        await self._request("subscribe", subscriptions, on_ack, is_repeat=True)

    async def unsubscribe(self, subscriptions: Iterable[Subscription], on_ack: AckCallback) -> None:
        """Unsubscribe from all, in the same way."""
        await self._request("unsubscribe", subscriptions, on_ack)

    async def wait_closed(self) -> CloseReason:
        """Wait until the connection is closed; return why. Raises the sink's error if that closed it."""
        return await asyncio.shield(self._close_reason)

    @property
    def last_activity_at(self) -> float:
        """When the server was last known to be there (boottime); first, when the connection was created.

        What is read soon after a pause may have waited in buffers since the pause began.
        """
        return self._heard_before_pause_at if self._read_at < self._resumed_at + BACKLOG_SECONDS else self._came_at

    @property
    def frames(self) -> int:
        """How many frames it has received."""
        return self._ended_frames + len(self._texts)

    @property
    def alive(self) -> bool:
        """Whether the connection is not closed yet."""
        return not self._close_reason.done()

    async def close(self, cause: str, reason: str) -> None:
        """Close with a closing handshake if the socket is open, else abort. May be called more than once."""
        handshake = self.alive and self.opened_at is not None
        self.on_closed(cause, reason)
        if self._client is not None:
            await self._client.abandon(CLOSE_SECONDS if handshake else ABORT_SECONDS)
            self._client = None  # not before: if this is cancelled, the next call of close() does the rest
        if not self._close_reason.cancelled():
            self._close_reason.exception()  # retrieve it: the caller of close() need not wait for the reason

    # --- called by the client's read loop ---

    @property
    def congested(self) -> bool:
        return self._sink.congested

    def on_frame(self, event: str, text: str) -> bool:
        # No await anywhere here: order and speed depend on it.
        if event is self._run_event:
            self._texts.append(text)
            return False
        self._begin_run(event)
        self._texts.append(text)
        return self._sink.congested

    def _begin_run(self, event: str) -> None:
        """Begin a run. Its frames have the time of the first: by then all that is read in this pass had come."""
        self._end_run()
        self._note_frame()
        self._run_event = event
        self._sink.begin_run(self._end_run)

    def _end_run(self) -> None:
        if self._run_event is None:
            return
        event, texts, self._run_event, self._texts = self._run_event, self._texts, None, []
        self._ended_frames += len(texts)
        stamps = [self.last_frame_us or 0] * len(texts)
        settings = self._settings
        run = FrameRun(self.id, "stream", event, settings.path, settings.params, stamps, texts)
        with suppress(Exception):  # which closes the connection
            self._append(run)

    def on_data(self, event: str, text: str) -> int:
        self._end_run()
        at_us = self._note_frame()
        self._ended_frames += 1
        settings = self._settings
        return self._append(Frame(at_us, self.id, "stream", event, settings.path, settings.params, text))

    def _note_frame(self) -> int:
        self.last_frame_us = at_us = time.time_ns() // 1000
        self._read_at = self.last_frame_at = boottime()
        self._came_at = self._clock()
        return at_us

    def _append(self, item: FrameRun | Frame) -> int:
        try:
            return self._sink.append(item)
        except Exception as error:
            if self.alive:
                self._close_reason.set_exception(error)
            raise

    def on_activity(self) -> None:
        self._read_at = boottime()
        self._came_at = self._clock()

    async def wait_for_space(self) -> None:
        self._heard_before_pause_at = self.last_activity_at
        self._paused = True
        reason = "too much unsynced data in the spool: reading pauses until it is synced"
        self._record(Fact("paused", wall_us(), {"connection": self.id, "reason": reason}))
        try:
            await self._sink.wait_for_space()
        finally:
            self._paused = False
            # Nothing was read: that is no silence of the server, but no sign of life either.
            self._resumed_at = boottime()
        self._record(Fact("resumed", wall_us(), {"connection": self.id}))

    def on_provider_error(self, event: str, args: list[Any]) -> None:
        text = "; ".join(error_text(arg) for arg in args)[:MAX_TEXT_CHARACTERS]
        detail = {"connection": self.id, "path": self._settings.path, "event": event, "text": text}
        self._record(Fact("provider_error", wall_us(), detail))

    def on_error_packet(self, error: object) -> None:
        if self.opened_at is not None:
            self.on_provider_error("error", [error])
            return
        # Nothing was requested yet, so the error can only concern the connection.
        self._rejection = error_text(error)

    def on_closed(self, cause: str, reason: str) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        if self.alive:
            self.closed_at = boottime()
            self._close_reason.set_result(CloseReason(cause, sanitize(reason)))

    # --- opening ---

    async def _connect(self, token: Token) -> None:
        settings = self._settings
        session = http_session(settings.tls_context, settings.proxy)
        self._client = client = make_client(self.protocol_version, self, settings.events, session)
        # A client may wait for an answer without a limit, even when the socket is closed.
        attempt = asyncio.create_task(client.connect(settings.url, token.value))
        try:
            either: list[asyncio.Future[Any]] = [attempt, self._close_reason]
            await asyncio.wait(either, timeout=OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._rejection is not None:
                raise ConnectionRefused(f"the server refused the token: {self._rejection}")
            if attempt.done():
                attempt.result()
            if not self.alive:
                raise ConnectionFailed(self._close_reason.result().reason)
            if not attempt.done():
                raise ConnectionFailed(f"no answer within {OPEN_SECONDS:g} s")
        finally:
            attempt.cancel()
            await asyncio.wait({attempt})
            if not attempt.cancelled():
                attempt.exception()
        self._check_silence(client.silence_seconds)

    def _check_silence(self, limit_seconds: float, grace: bool = False) -> None:
        # One timer, instead of a timeout around every read.
        read_at = max(self._read_at, self._resumed_at)
        left = limit_seconds if self._paused else limit_seconds - (boottime() - read_at)
        if left <= 0 and grace:
            self.on_closed("mute", f"nothing received for {limit_seconds:g} s")
            return
        wait = left if left > 0 else GRACE_SECONDS
        loop = asyncio.get_running_loop()
        self._silence_timer = loop.call_later(wait, self._check_silence, limit_seconds, left <= 0)

    # --- subscribing ---

    async def _request(
        self, event: str, subscriptions: Iterable[Subscription], on_ack: AckCallback, is_repeat: bool = False
    ) -> None:
        if self._client is None:
            return
        slots = self._client.slots(is_repeat)
        remaining = iter(subscriptions)
        async with asyncio.TaskGroup() as group:
            # Take the next subscription only when a slot is free: it may have been removed meanwhile.
            while await slots.acquire() and self.alive and (subscription := next(remaining, None)):
                task = group.create_task(self._request_one(event, subscription, on_ack))
                task.add_done_callback(lambda _: slots.release())
            slots.release()  # the one that was not needed

    async def _request_one(self, event: str, subscription: Subscription, on_ack: AckCallback) -> None:
        acknowledged = asyncio.Event()

        def handle_ack(*args: object) -> None:
            acknowledged.set()
            error = args[0] if args else None
            # The provider runs on Node.js: `callback(err)`, where nothing, false and "" mean no error.
            on_ack(subscription, None if error in (None, False, "") else error_text(error))

        if self._client is None or not self.alive:
            return
        payload = {"path": subscription.path, "method": subscription.method, "params": dict(subscription.params)}
        try:
            await self._client.emit(event, payload, handle_ack)
            async with asyncio.timeout(ACK_SECONDS):
                await acknowledged.wait()
        except ConnectionFailed:
            pass  # the connection has just been closed, which on_closed reports
        except TimeoutError:
            if self.alive:
                on_ack(subscription, f"not acknowledged within {ACK_SECONDS:g} s")
