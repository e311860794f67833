"""The checks of `ingestor check --connect`: the way of the data once, from the API key to a row. Nothing is kept.

Each check reports its result and how long it took. A failure skips only the checks that depend on it. The connections
are opened one by one rather than by a ``Supervisor``: its facts have reasons, but neither exit codes nor durations.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

from ingestor import __version__
from ingestor.commands.check import DAY_SECONDS
from ingestor.commands.check_result import CheckResult
from ingestor.config import Config, Subscription
from ingestor.config.loader import find_location
from ingestor.config.units import format_duration
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact, Frame, FrameRun
from ingestor.core.threads import run_in_daemon_thread
from ingestor.core.times import to_datetime
from ingestor.daemon import control_socket
from ingestor.errors import (
    BatchRejected,
    ConnectionFailed,
    ConnectionRefused,
    DatabaseUnavailable,
    IngestorError,
    TokenUnavailable,
)
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.decoder import DecodedFrame, Decoder
from ingestor.provider import catalog
from ingestor.provider.auth import Token
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.http_client import HttpRequest, RequestFailed
from ingestor.provider.socket.connection import Connection, ConnectionSettings
from ingestor.provider.socket.protocol import ProtocolDetector, ProtocolVersion
from ingestor.provider.subscriptions.supervisor import group_subscriptions
from ingestor.provider.transport import make_tls_context, with_remedy
from ingestor.store import migrate
from ingestor.store.engine import sqlite_path
from ingestor.store.maintenance.dry_run import dry_run
from ingestor.store.open_database import open_database
from ingestor.store.write.registration import InstanceInfo

DATA_SECONDS = 10.0  # to wait for the first response
_DECODER = Decoder(catalog.metrics_of, catalog.feed_name)
CLOCK_SECONDS = 10.0  # to wait for the provider's time
MAX_SKEW_SECONDS = 2.0  # the Date header has whole seconds, and takes time to arrive

_PROTOCOLS = {
    ProtocolVersion.SOCKET_IO_4: "Socket.IO 3.x or 4.x",
    ProtocolVersion.SOCKET_IO_2: "Socket.IO 1.x or 2.x",
    ProtocolVersion.SOCKET_IO_0: "Socket.IO 0.8 or 0.9",
}

ReportResult: TypeAlias = Callable[[CheckResult], None]
Finding: TypeAlias = tuple[str, bool]  # a message, and whether it is a warning


class ProbeFailed(IngestorError):
    """The provider did not respond as it should."""

    exit_code = 69


@dataclass(slots=True)
class InMemorySink:
    """Keeps what a connection receives, in place of the spool."""

    frames: list[Frame] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    received: asyncio.Event = field(default_factory=asyncio.Event)
    congested: bool = False
    head: int = 0

    def append(self, item: FrameRun | Frame | Fact) -> int:
        if isinstance(item, Fact):
            self.facts.append(item)
        else:
            self.frames += item.frames() if isinstance(item, FrameRun) else [item]
            self.received.set()
        return self.head

    def begin_run(self, end: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(end)

    async def wait_for_space(self) -> None:
        pass

    async def durable(self, seq: int) -> None:
        pass


async def run_online_checks(config: Config, report: ReportResult) -> None:
    """Run every check, and report each result as soon as it is known."""
    token = await _check_token(config, report)
    await _check_clock(config, report)
    frames = await _check_connections(config, token, report) if token else []
    if frames:
        report(_check_outage(config, frames))
    with _checking("database write", report) as result:
        result.message, result.warning = await _check_write(config, frames)


@contextmanager
def _checking(name: str, report: ReportResult) -> Iterator[CheckResult]:
    """Yield a result to complete, and report it with its duration. An error in the block makes it a failure."""
    result, started_at = CheckResult(name, ""), boottime()
    try:
        yield result
    except IngestorError as error:
        result.message, result.exit_code = str(error), error.exit_code
    result.seconds = round(boottime() - started_at, 3)
    report(result)


# The provider


async def _check_token(config: Config, report: ReportResult) -> Token | None:
    provider = config.provider
    if provider.api_key is None:
        report(CheckResult("token", "skipped: there is no API key", warning=True))
        return None
    login = partial(
        fetch_token,
        provider.url + provider.token_path,
        provider.api_key,
        lifetime_seconds=provider.token.lifetime,
        timeout_seconds=provider.token.timeout,
        ca_file=provider.ca_file,
        proxy=config.proxy,
    )
    with _checking("token", report) as result:
        try:
            token = await run_in_daemon_thread(login, "token")
        except TokenUnavailable as error:
            raise _provider_failed(config, str(error)) from None
        result.message = f"API key accepted, tokens are valid for {format_duration(round(token.life_seconds))}"
        paths = {subscription.path for subscription in config.subscriptions}
        if missing := sorted(path for path in paths if not token.allows(path)):
            result.message += f"; the token's claims do not include {', '.join(missing)}, subscribing anyway"
            result.warning = True
        return token
    report(CheckResult("server", "skipped: there is no token", warning=True))
    return None


async def _check_clock(config: Config, report: ReportResult) -> None:
    provider = config.provider
    request = HttpRequest(
        method="HEAD",
        url=provider.url,
        timeout_seconds=CLOCK_SECONDS,
        max_bytes=0,
        ca_file=provider.ca_file,
        proxy=config.proxy,
    )
    with _checking("clock", report) as result:
        sent_at = time.time()
        try:
            response = await run_in_daemon_thread(request.send, "clock")
        except RequestFailed as error:
            raise _provider_failed(config, f"{provider.url}: {with_remedy(str(error))}") from None
        now = (sent_at + time.time()) / 2
        try:
            # The header is truncated to whole seconds.
            provider_now = parsedate_to_datetime(response.headers.get("Date", "")).timestamp() + 0.5
        except (ValueError, TypeError):
            result.message = "not compared: the provider does not send its time"
        else:
            result.message, result.warning = _compare_clocks(now - provider_now)


def _provider_failed(config: Config, reason: str) -> ProbeFailed:
    """Return the error that the provider cannot be reached, with the place of its URL."""
    return ProbeFailed(f"{find_location(config, 'provider', 'url')}: provider.url: {reason}")


def _compare_clocks(ahead_seconds: float) -> Finding:
    if abs(ahead_seconds) <= MAX_SKEW_SECONDS:
        return "agrees with the provider's clock", False
    direction = "ahead of" if ahead_seconds > 0 else "behind"
    skew = f"{abs(ahead_seconds):.0f} s {direction} the provider's clock"
    return f"{skew}, so receive times are wrong; see `timedatectl`", True


async def _check_connections(config: Config, token: Token, report: ReportResult) -> list[Frame]:
    """Check one subscription of each connection that the daemon would open, and return the first frames."""
    provider = config.provider
    tls_context = make_tls_context(provider.ca_file) if urlsplit(provider.url).scheme == "https" else None
    with _checking("server", report) as result:
        detector = ProtocolDetector(provider.url, provider.protocol, tls_context, config.proxy)
        try:
            protocol = await detector.detect(token.value)
        except ConnectionRefused:
            raise
        except ConnectionFailed as error:
            raise _provider_failed(config, str(error)) from None
        source = "detected" if provider.protocol == "auto" else "set by provider.protocol"
        result.message = f"uses {_PROTOCOLS[protocol]}, {source}"
    if result.exit_code:
        return []
    settings = partial(
        ConnectionSettings, url=provider.url, events=provider.events, tls_context=tls_context, proxy=config.proxy
    )
    frames: list[Frame] = []
    async with asyncio.TaskGroup() as tasks:
        checks = []
        for (path, params), members in group_subscriptions(config.subscriptions).items():
            results: list[CheckResult] = []
            sink = InMemorySink()
            connection = Connection(settings(path=path, params=params), protocol, sink, sink.append)
            check = _check_connection(connection, sink, members[0], token, results.append)
            checks.append((tasks.create_task(check), results))
        for task, results in checks:  # they run at the same time, and are reported in the order of the config
            frames += await task
            for result in results:
                report(result)
    return frames


async def _check_connection(
    connection: Connection, sink: InMemorySink, subscription: Subscription, token: Token, report: ReportResult
) -> list[Frame]:
    name = f"{subscription.path} {subscription.ticker}".rstrip()
    try:
        with _checking(f"connect {subscription.path}", report) as result:
            await connection.open(token)
            result.message = "connected with the token"
        if not result.exit_code:
            with _checking(f"subscribe {name}", report) as result:
                await _subscribe(connection, subscription)
                result.message = "acknowledged"
        if not result.exit_code:
            with _checking(f"data {name}", report) as result:
                result.message, result.warning = await _receive(connection, sink, subscription)
                return sink.frames[:1]
    finally:
        await connection.close("stopped", "check completed")
    return []


async def _subscribe(connection: Connection, subscription: Subscription) -> None:
    answers: list[str | None] = []
    await connection.subscribe([subscription], lambda _subscription, error: answers.append(error))
    if not answers:
        raise ConnectionFailed((await connection.wait_closed()).reason)
    if answers[0] is not None:
        remedy = "the daemon would keep retrying; correct the subscription, or ask the provider"
        raise ProbeFailed(f"refused: {answers[0]}; {remedy}")


async def _receive(connection: Connection, sink: InMemorySink, subscription: Subscription) -> Finding:
    waits = [asyncio.ensure_future(sink.received.wait()), asyncio.ensure_future(connection.wait_closed())]
    await asyncio.wait(waits, timeout=DATA_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if sink.frames:
        return _check_response(_DECODER.decode(sink.frames[0]))
    if not connection.alive:
        raise ConnectionFailed((await connection.wait_closed()).reason)
    if texts := [str(fact.detail["text"]) for fact in sink.facts if fact.kind == "provider_error"]:
        raise ProbeFailed(f"the provider reports: {'; '.join(texts)}")
    feed = catalog.FEEDS.get(catalog.base_name(subscription.path))
    cadence = f" (this feed sends every {format_duration(feed.cadence_seconds)})" if feed else ""
    return f"no data within {DATA_SECONDS:.0f} s{cadence}; the daemon would keep waiting", True


def _check_response(decoded: DecodedFrame) -> Finding:
    if dead := decoded.dead_frame:
        raise ProbeFailed(f"the response is unreadable ({dead.reason}: {dead.detail}), it would become a dead letter")
    if decoded.dead:
        first = f"{decoded.dead[0].reason}: {decoded.dead[0].detail}"
        count = f"{len(decoded.dead)} of {decoded.rows} rows"
        return f"{count} are unreadable, they would become dead letters ({first})", True
    if not decoded.observations:
        return "empty response: the feed works, and has no data now", False
    newest = to_datetime(max(ts_us for _, ts_us, _, _ in decoded.observations))
    message = f"{decoded.rows} rows up to {newest:%Y-%m-%d %H:%M:%S} UTC"
    if decoded.unknown_fields:
        message += f"; unknown fields are not stored: {', '.join(map(ascii, decoded.unknown_fields))}"
    return message, bool(decoded.unknown_fields)


def _check_outage(config: Config, frames: list[Frame]) -> CheckResult:
    """Refine the estimate of the offline check by the size of real responses."""
    members = group_subscriptions(config.subscriptions)
    bytes_per_day = 0.0
    for frame in frames:
        feed = catalog.FEEDS.get(catalog.base_name(frame.path))
        responses = len(members[frame.path, frame.params]) * DAY_SECONDS / (feed.cadence_seconds if feed else 60)
        bytes_per_day += responses * len(frame.text)
    hours = config.spool.max_bytes / bytes_per_day * 24
    message = f"with responses of this size, spool.max_bytes lasts for a database outage of {hours:,.1f} h"
    return CheckResult("outage", message, warning=hours < 1)


# The database


async def _check_write(config: Config, frames: list[Frame]) -> Finding:
    url = config.database.url.get_secret_value()
    running = await run_in_daemon_thread(partial(control_socket.send_request, config.spool.path, "status"), "daemon")
    if running and sqlite_path(url):
        return "skipped: the running daemon writes to this file, only one process may", True
    revision = await run_in_daemon_thread(partial(_current_revision, url), "schema")
    if revision != migrate.head_revision() and (revision or config.database.migrate == "never"):
        tables = f"the tables have schema {revision}" if revision else "there are no tables"
        return f"skipped: {tables}, see above", True
    return await run_in_daemon_thread(partial(_dry_run, config, url, frames), "write")


def _current_revision(url: str) -> str | None:
    path = sqlite_path(url)
    if path and not path.exists():
        return None
    with open_database(url) as engine:
        return migrate.current_revision(engine)


def _dry_run(config: Config, url: str, frames: list[Frame]) -> Finding:
    builder = BatchBuilder(1, _DECODER)
    entries: list[Frame | Fact] = [*frames, Fact("checked", wall_us(), {})]
    for entry in enumerate(entries, start=1):
        builder.add(entry)
    sha256 = config.sha256
    instance = InstanceInfo(spool_id="", name="check", version=__version__, config_sha256=sha256, started_us=wall_us())
    try:
        result = dry_run(url, instance, builder.batch)
    except BatchRejected as error:
        raise DatabaseUnavailable(f"the database rejects rows: {error}") from None
    except OSError as error:
        raise DatabaseUnavailable(f"{error.filename}: {error.strerror}; see database.url") from None
    message = f"{len(builder.batch.rows):,} values" if frames else "a batch without values"
    message += " written and rolled back"
    if result.dead_rows:
        message += f"; {result.dead_rows} rows were rejected, they would become dead letters"
    return message, bool(result.dead_rows)
