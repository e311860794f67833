"""The daemon at one moment, as a frozen snapshot.

status.json, /healthz, /readyz, metrics and `ingestor status` are all made from it, so they cannot disagree.
Knows nothing of who fills it (the service) or shows it (web, metrics, cli).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import msgspec

from ingestor.core.entries import Fact, State
from ingestor.core.redaction import redactor

Severity = Literal["info", "warning", "error"]

_SEVERITY: dict[str, Severity] = {
    "silent": "warning",
    "refused": "warning",
    "disconnected": "warning",
    "token_failed": "warning",
    "provider_error": "warning",
    "paused": "warning",
    "clock_stepped": "warning",
    "crashed": "warning",
    "spool_level": "warning",
    "connect_failed": "warning",
    "not_entitled": "warning",
    "evicted": "warning",
    "config_rejected": "warning",
    "repair_failed": "warning",
    "spool_full": "error",
    "lost": "error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """The socket of one group of subscriptions: one path, and one set of params other than the ticker."""

    id: str | None  # None before the first socket
    path: str
    feed: str
    connected: bool
    dialect: str | None = None  # "4" or "3"; None before the probe
    frames: int = 0  # since the daemon started, over all sockets that this group has had
    last_frame_at: datetime | None = None
    since: datetime | None = None  # connected, or not, since then
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStatus:
    """One (path, method, params) that the operator asked for, and how it fares."""

    path: str
    params: str  # canonical JSON
    feed: str
    state: State
    since: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """What waits between socket and database."""

    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    head_seq: int = 0  # the last appended
    durable_seq: int = 0  # the last fsynced
    acked_seq: int = 0  # the last that the database has
    oldest_age_seconds: float = 0.0  # of the first entry that waits; 0 with none

    @property
    def full(self) -> bool:
        return 0 < self.limit_bytes <= self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """The other end. ``lag_seconds`` is how long the oldest entry has waited for its commit."""

    up: bool = False
    kind: str = ""  # "sqlite", "postgresql"
    position: int = 0
    last_commit_at: datetime | None = None
    lag_seconds: float = 0.0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """What became of every row decoded since the daemon started."""

    new: int = 0
    revised: int = 0
    duplicate: int = 0
    dead: int = 0
    expired: int = 0  # older than samples are kept, and not stored


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterCounts:
    """Dead letters written since the daemon started, frames and rows, by where they died."""

    decode: int = 0
    insert: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatus:
    """How long the token lasts. Its text is nowhere in here."""

    expires_at: datetime | None = None
    life_seconds: float | None = None
    logins: Mapping[str, int] = field(default_factory=dict)  # by outcome: ok, refused, unavailable, nonsense


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Something that has to advance for the daemon to be alive, e.g. the event loop, the spool's thread."""

    name: str
    age_seconds: float  # since it last advanced, on CLOCK_BOOTTIME
    limit_seconds: float

    @property
    def stuck(self) -> bool:
        return self.age_seconds > self.limit_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentError:
    """One thing that went wrong, as people are told of it."""

    at: datetime
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole daemon at ``at``. Counts run since ``started_at``; times are UTC."""

    at: datetime
    instance: str
    version: str
    pid: int
    started_at: datetime
    config_sha256: str
    config_reload_successful: bool = True
    connections: tuple[ConnectionStatus, ...] = ()
    subscriptions: tuple[SubscriptionStatus, ...] = ()
    spool: SpoolStatus = field(default_factory=SpoolStatus)
    database: DatabaseStatus = field(default_factory=DatabaseStatus)
    rows: RowCounts = field(default_factory=RowCounts)
    dead_letters: DeadLetterCounts = field(default_factory=DeadLetterCounts)
    batches: int = 0
    publish_skew_seconds: Mapping[str, float] = field(default_factory=dict)  # by feed; negative: behind our clock
    token: TokenStatus = field(default_factory=TokenStatus)
    pulses: tuple[Heartbeat, ...] = ()
    last_errors: tuple[RecentError, ...] = ()

    def to_json(self) -> bytes:
        """As status.json, with both verdicts in it.

        Texts that came from outside are scrubbed of secrets once more on their way out.
        """
        verdicts = b',"healthy":%b,"ready":%b}' % (check_health(self).to_json(), check_readiness(self).to_json())
        return msgspec.json.encode(_scrubbed(self)).removesuffix(b"}") + verdicts

    @classmethod
    def from_json(cls, body: bytes) -> Status:
        """What :meth:`to_json` wrote, also by another version (unknown keys are skipped). Raises ValueError."""
        return msgspec.json.decode(body, type=cls)


@dataclass(frozen=True, slots=True)
class HealthResult:
    """Yes, or no with every reason."""

    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons

    def to_json(self) -> bytes:
        return msgspec.json.encode({"ok": self.ok, "reasons": self.reasons})


def check_health(status: Status) -> HealthResult:
    """Does the daemon itself advance? Says nothing of provider and database: a restart would not mend those."""
    return HealthResult(
        tuple(
            f"{pulse.name} has not advanced for {pulse.age_seconds:.0f} s (limit {pulse.limit_seconds:.0f} s)"
            for pulse in status.pulses
            if pulse.stuck
        )
    )


def check_readiness(status: Status) -> HealthResult:
    """Is every wanted connection up, and can what arrives be stored?"""
    return HealthResult(tuple(_not_ready(status)))


def _not_ready(status: Status) -> Iterator[str]:
    if not status.connections:
        yield "no connection has been tried yet"
    for connection in status.connections:
        if not connection.connected:
            yield f"{connection.path}: not connected"
    if not status.database.up:
        yield "the database cannot be reached"
    if status.spool.full:
        yield "the spool is full"


def severity(fact: Fact) -> Severity:
    """How much a person should care."""
    return _SEVERITY.get(fact.kind) or _SEVERITY.get(fact.state or "", "info")


class RecentErrors:
    """The last things that went wrong, newest last. Listens to facts."""

    def __init__(self, keep: int = 20) -> None:
        self._last: deque[RecentError] = deque(maxlen=keep)

    def on_fact(self, fact: Fact) -> None:
        if severity(fact) != "info":
            at = datetime.fromtimestamp(fact.at_us / 1_000_000, UTC)
            self._last.append(RecentError(at=at, kind=fact.kind, text=_told(fact)))

    def newest(self) -> tuple[RecentError, ...]:
        return tuple(self._last)


def _told(fact: Fact) -> str:
    return ", ".join(f"{key}: {value}" for key, value in fact.detail.items())


def _scrubbed(status: Status) -> Status:
    # Only what outsiders wrote, and every text once: thousands of subscriptions have the same reason.
    scrub = functools.cache(redactor.scrub)
    return replace(
        status,
        connections=tuple(
            replace(one, last_error=one.last_error and scrub(one.last_error)) for one in status.connections
        ),
        subscriptions=tuple(
            one if not one.reason or scrub(one.reason) == one.reason else replace(one, reason=scrub(one.reason))
            for one in status.subscriptions
        ),
        database=replace(status.database, last_error=status.database.last_error and scrub(status.database.last_error)),
        last_errors=tuple(replace(one, text=scrub(one.text)) for one in status.last_errors),
    )
