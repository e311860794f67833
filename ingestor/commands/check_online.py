"""What `ingestor check --connect` tries: the whole way of the data once, from the key to a row. Nothing is kept.

One finding each, with the time it took and what to do. What can still be tried after a failure is tried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from ingestor import __version__
from ingestor.commands.check import DAY_SECONDS, CheckResult
from ingestor.config import Config, Subscription
from ingestor.config.units import format_duration
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact, Frame
from ingestor.core.threads import run_in_daemon_thread
from ingestor.daemon import control
from ingestor.errors import BatchRejected, ConnectionFailed, DatabaseUnavailable, IngestorError, PermissionDenied
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.decoder import DecodedFrame, Decoder
from ingestor.provider import catalog
from ingestor.provider.auth import Token
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.http_client import HttpRequest, RequestFailed
from ingestor.provider.socket.connection import Connection, ConnectionSettings
from ingestor.provider.socket.protocol import ProtocolDetector, ProtocolVersion
from ingestor.provider.subscriptions.supervisor import group_subscriptions
from ingestor.provider.transport import make_tls_context
from ingestor.store import migrate
from ingestor.store.engine import sqlite_path
from ingestor.store.maintenance.dry_run import dry_run
from ingestor.store.open_database import open_database
from ingestor.store.write.batch_writer import InstanceInfo

DATA_SECONDS = 10.0  # for the first answer
CLOCK_SECONDS = 10.0  # for the provider to tell its time
SKEW_SECONDS = 2.0  # a Date has whole seconds, and takes a while to come
AT_ONCE = 8  # connections

_SPEAKS = {ProtocolVersion.SOCKET_IO_4: "Socket.IO 3.x or 4.x", ProtocolVersion.SOCKET_IO_2: "Socket.IO 1.x or 2.x"}

T = TypeVar("T")
Tell = Callable[[CheckResult], None]


class ProbeFailed(IngestorError):
    """The provider did not do what it was asked to do."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class ProbeResult(Generic[T]):
    """Of a trial that went well, or well enough."""

    message: str
    value: T
    warning: bool = False


@dataclass(slots=True)
class InMemorySink:
    """Takes what a connection hands over, in the spool's place."""

    frames: list[Frame] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    congested: bool = False

    @property
    def head(self) -> int:
        return len(self.frames)

    def append(self, what: Frame | Fact) -> int:
        if isinstance(what, Frame):
            self.frames.append(what)
            self.came.set()
        return self.head

    async def wait_for_space(self) -> None:
        """There always is."""

    async def durable(self, seq: int) -> None:
        """As durable as it gets."""

    @property
    def complaints(self) -> str:
        """What the provider said of errors."""
        return "; ".join(str(fact.detail["text"]) for fact in self.facts if fact.kind == "provider_error")


async def run_online_checks(config: Config, tell: Tell) -> None:
    """Try all of it, and tell each finding as soon as it is there."""
    token = await _logged_in(config, tell)
    await _tried(tell, "clock", _clock(config))
    frames = await _listened(config, token, tell) if token else []
    if frames:
        tell(_outage(config, frames))
    await _tried(tell, "database write", _write(config, frames))


async def _tried(tell: Tell, name: str, trial: Awaitable[ProbeResult[T]]) -> T | None:
    began = boottime()
    try:
        outcome = await trial
    except IngestorError as error:
        code = error.exit_code
        tell(CheckResult(name=name, message=str(error), exit_code=code, seconds=round(boottime() - began, 3)))
        return None
    seconds = round(boottime() - began, 3)
    tell(CheckResult(name=name, message=outcome.message, warning=outcome.warning, seconds=seconds))
    return outcome.value


# The provider.


async def _logged_in(config: Config, tell: Tell) -> Token | None:
    key = config.provider.api_key
    if key is None:
        tell(CheckResult(name="token", message="not tried, since there is no API key", warning=True))
        return None
    token = await _tried(tell, "token", _token(config, key))
    if token is None:
        tell(CheckResult(name="server", message="not tried, since there is no token", warning=True))
    return token


async def _token(config: Config, key: SecretStr) -> ProbeResult[Token]:
    provider = config.provider
    login = partial(
        fetch_token,
        provider.url + provider.token_path,
        key,
        lifetime_seconds=provider.token.lifetime,
        timeout_seconds=provider.token.timeout,
        ca_file=provider.ca_file,
        proxy=config.proxy,
    )
    token = await run_in_daemon_thread(login, "token")
    life = f"the key is accepted; a token lives {format_duration(round(token.life_seconds))}"
    others = sorted({one.path for one in config.subscriptions if not token.allows(one.path)})
    if others:
        more = f", and its claims do not name {', '.join(others)}, which are asked for all the same"
        return ProbeResult(life + more, token, warning=True)
    return ProbeResult(life, token)


async def _clock(config: Config) -> ProbeResult[None]:
    provider = config.provider
    request = HttpRequest(
        "HEAD",
        provider.url,
        headers={},
        timeout_seconds=CLOCK_SECONDS,
        max_bytes=0,
        ca_file=provider.ca_file,
        proxy=config.proxy,
    )
    began = time.time()
    try:
        answer = await run_in_daemon_thread(request.send, "clock")
    except RequestFailed as error:
        raise ProbeFailed(f"{provider.url}: {error}") from None
    ours = (began + time.time()) / 2
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp() + 0.5  # it is cut to whole seconds
    except (ValueError, TypeError):
        return ProbeResult("the provider does not say what time it is", None)
    return _skew(ours - theirs)


def _skew(seconds: float) -> ProbeResult[None]:
    """How far our clock is ahead of theirs."""
    if abs(seconds) <= SKEW_SECONDS:
        return ProbeResult("ours and the provider's agree", None)
    way = "ahead of" if seconds > 0 else "behind"
    message = f"ours is {abs(seconds):.0f} s {way} the provider's: times of receipt would be wrong; see `timedatectl`"
    return ProbeResult(message, None, warning=True)


async def _listened(config: Config, token: Token, tell: Tell) -> list[Frame]:
    """The first frames of each path, from as many connections as the daemon would have."""
    provider = config.provider
    verification = make_tls_context(provider.ca_file) if urlsplit(provider.url).scheme == "https" else None
    detector = ProtocolDetector(provider.url, provider.protocol, verification, config.proxy)
    version = await _tried(tell, "server", _detect_protocol(config, detector, token))
    if version is None:
        return []
    slots = asyncio.Semaphore(AT_ONCE)

    async def listen(line: ConnectionSettings, subscription: Subscription) -> tuple[list[CheckResult], list[Frame]]:
        findings: list[CheckResult] = []
        async with slots:
            return findings, await _hear(line, subscription, version, token, findings.append)

    trials = []
    for (path, params), members in group_subscriptions(config.subscriptions).items():
        line = ConnectionSettings(
            url=provider.url,
            path=path,
            params=params,
            events=provider.events,
            tls_context=verification,
            proxy=config.proxy,
        )
        trials.append(listen(line, members[0]))
    return await _in_order(trials, tell)


async def _in_order(
    trials: list[Coroutine[Any, Any, tuple[list[CheckResult], list[Frame]]]], tell: Tell
) -> list[Frame]:
    """All at once, and told one after the other."""
    frames: list[Frame] = []
    async with asyncio.TaskGroup() as group:
        for task in [group.create_task(trial) for trial in trials]:
            findings, heard = await task
            frames += heard
            for finding in findings:
                tell(finding)
    return frames


async def _detect_protocol(config: Config, detector: ProtocolDetector, token: Token) -> ProbeResult[ProtocolVersion]:
    version = await detector.detect(token.value)
    told = "as provider.protocol says" if config.provider.protocol != "auto" else "as it says itself"
    return ProbeResult(f"it speaks {_SPEAKS[version]}, {told}", version)


async def _hear(
    line: ConnectionSettings, subscription: Subscription, version: ProtocolVersion, token: Token, tell: Tell
) -> list[Frame]:
    memory = InMemorySink()
    connection = Connection(line, version, memory, memory.facts.append)
    name = f"{subscription.path} {subscription.ticker}".rstrip()
    try:
        if (
            await _tried(tell, f"connect {line.path}", _open(connection, token)) is not None
            and await _tried(tell, f"subscribe {name}", _subscribe(connection, subscription)) is not None
            and (decoded := await _tried(tell, f"data {name}", _data(connection, memory, subscription)))
            and decoded.dead_frame is None
        ):
            return memory.frames[:1]
    finally:
        await connection.close("stopped", "checked")
    return []


async def _open(connection: Connection, token: Token) -> ProbeResult[Connection]:
    await connection.open(token)
    return ProbeResult("the token opens the socket", connection)


async def _subscribe(connection: Connection, subscription: Subscription) -> ProbeResult[Connection]:
    answers: list[str | None] = []
    await connection.subscribe([subscription], lambda _one, error: answers.append(error))
    if not answers:
        raise ConnectionFailed((await connection.wait_closed()).reason)
    if answers[0] is not None:
        raise ProbeFailed(
            f"refused: {answers[0]}; the daemon would go on asking: mend the subscription, or ask them why"
        )
    return ProbeResult("acknowledged", connection)


async def _data(
    connection: Connection, memory: InMemorySink, subscription: Subscription
) -> ProbeResult[DecodedFrame | None]:
    waits = [asyncio.ensure_future(memory.came.wait()), asyncio.ensure_future(connection.wait_closed())]
    await asyncio.wait(waits, timeout=DATA_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if memory.frames:
        return _understood(Decoder(catalog.metrics_of, catalog.feed_name).decode(memory.frames[0]))
    if not connection.alive:
        raise ConnectionFailed((await connection.wait_closed()).reason)
    if memory.complaints:
        raise ProbeFailed(f"the provider says: {memory.complaints}")
    known = catalog.FEEDS.get(catalog.base_name(subscription.path))
    often = f"; this feed speaks every {format_duration(known.cadence_seconds)}" if known else ""
    return ProbeResult(f"nothing came within {DATA_SECONDS:.0f} s{often}; the daemon would wait", None, warning=True)


def _understood(decoded: DecodedFrame) -> ProbeResult[DecodedFrame | None]:
    if dead := decoded.dead_frame:
        raise ProbeFailed(f"an answer that cannot be read ({dead.reason}: {dead.detail}); it would be a dead letter")
    if decoded.dead:
        first = f"{decoded.dead[0].reason}: {decoded.dead[0].detail}"
        message = f"{len(decoded.dead)} of {decoded.rows} rows cannot be read, and would be dead letters ({first})"
        return ProbeResult(message, decoded, warning=True)
    if not decoded.observations:
        return ProbeResult("an empty answer: the feed is alive, and quiet", decoded)
    newest = datetime.fromtimestamp(max(one[1] for one in decoded.observations) / 1e6, UTC)
    if decoded.unknown_fields:
        names = ", ".join(map(ascii, decoded.unknown_fields))
        message = f"{decoded.rows} rows up to {newest:%Y-%m-%d %H:%M:%S} UTC; the fields {names} are not stored"
        return ProbeResult(message, decoded, warning=True)
    return ProbeResult(f"{decoded.rows} rows up to {newest:%Y-%m-%d %H:%M:%S} UTC", decoded)


def _outage(config: Config, frames: list[Frame]) -> CheckResult:
    """What `checking` can only guess at: how large answers are."""
    members = group_subscriptions(config.subscriptions)
    per_day = 0.0
    for frame in frames:
        known = catalog.FEEDS.get(catalog.base_name(frame.path))
        answers = len(members[frame.path, frame.params]) * DAY_SECONDS / (known.cadence_seconds if known else 60)
        per_day += answers * len(frame.text)
    hours = config.spool.max_bytes / per_day * 24
    message = f"spool.max_bytes hold some {hours:,.1f} h of a database that is away, as large as these answers are"
    return CheckResult(name="outage", message=message, warning=hours < 1)


# The database.


async def _write(config: Config, frames: list[Frame]) -> ProbeResult[None]:
    url = config.database.url.get_secret_value()
    running = await run_in_daemon_thread(partial(control.send_request, config.spool.path, "status"), "daemon")
    if running and sqlite_path(url):
        return ProbeResult("not tried, since the daemon writes there, and only one may", None, warning=True)
    found = await run_in_daemon_thread(partial(_schema, url), "schema")
    if found != migrate.head_revision() and (found or config.database.migrate == "never"):
        state = f"of schema {found}" if found else "not there"
        return ProbeResult(f"not tried, since the tables are {state}: see above", None, warning=True)
    return await run_in_daemon_thread(partial(_rehearsed, config, url, frames), "write")


def _schema(url: str) -> str | None:
    path = sqlite_path(url)
    if path and not path.exists():
        return None
    with open_database(url) as engine:
        return migrate.current_revision(engine)


def _rehearsed(config: Config, url: str, frames: list[Frame]) -> ProbeResult[None]:
    assembly = BatchBuilder(1, Decoder(catalog.metrics_of, catalog.feed_name))
    for seq, frame in enumerate(frames, start=1):
        assembly.add((seq, frame))
    assembly.add((len(frames) + 1, Fact("checked", wall_us(), {})))
    instance = InstanceInfo(
        spool_id="", name="check", version=__version__, config_sha256=config.sha256, started_us=wall_us()
    )
    try:
        written = dry_run(url, instance, assembly.batch)
    except BatchRejected as error:
        raise DatabaseUnavailable(f"it refuses rows: {error}") from None
    except DatabaseUnavailable as error:
        if any(words in str(error) for words in ("permission denied", "readonly database")):
            raise PermissionDenied(str(error)) from None
        raise
    except OSError as error:
        raise DatabaseUnavailable(f"{error.filename}: {error.strerror}; see database.url") from None
    what = f"{len(assembly.batch.rows):,} values" if frames else "a batch without values"
    message = f"{what}: written, and taken back"
    if written.dead_rows:
        return ProbeResult(
            f"{message}; {written.dead_rows} rows were refused, and would be dead letters", None, warning=True
        )
    return ProbeResult(message, None)
