"""The state of the daemon at one moment, as a frozen snapshot.

status.json, /healthz, /readyz, the metrics and `ingestor status` are all made from it, so they cannot disagree.
``daemon.status_snapshot`` fills it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from ingestor.core.entries import Fact, State
from ingestor.core.redaction import redactor

Severity = Literal["info", "warning", "error"]

# Kinds and states of facts.
_ERRORS = frozenset({"spool_full", "lost"})
_WARNINGS = frozenset(
    {"silent", "refused", "disconnected", "token_failed", "provider_error", "paused", "clock_stepped", "crashed"}
    | {"spool_level", "connect_failed", "not_entitled", "evicted", "config_rejected", "repair_failed", "copied"}
    | {"took_over", "lease_expired", "lease_yielded", "rewound"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """The connection of one group: the subscriptions that share a path and all params other than the ticker."""

    id: str | None  # None before the first connection
    path: str
    feed: str
    connected: bool
    dialect: str | None = None  # protocol version "4", "3" or "0.9"; None until it was detected
    frames: int = 0  # since the daemon started, on all connections of this group
    last_frame_at: datetime | None = None
    since: datetime | None = None  # when ``connected`` last changed
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStatus:
    """A subscription and its state."""

    path: str
    params: str  # canonical JSON
    feed: str
    state: State
    since: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """The queue between socket and database."""

    entries: int = 0
    bytes: int = 0  # of what the database never had: only this counts towards the limit
    limit_bytes: int = 0
    kept_bytes: int = 0  # of what it has, and which stays for ``spool.keep``
    head_seq: int = 0  # of the last entry appended
    durable_seq: int = 0  # of the last entry fsynced
    acked_seq: int = 0  # of the last entry committed and acknowledged
    oldest_age_seconds: float = 0.0  # of the oldest entry; 0 if empty
    disk_full: bool = False  # its disk is: nothing more is received, whatever the size of the spool
    set_aside: int = 0  # folders of spools that could not be read completely

    @property
    def full(self) -> bool:
        return 0 < self.limit_bytes <= self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """The database. ``lag_seconds`` is how long the oldest entry has waited for its commit."""

    up: bool = False
    kind: str = ""  # "sqlite", "postgresql"
    server: str = ""  # host:port that answered last; empty for SQLite
    position: int = 0
    last_commit_at: datetime | None = None
    lag_seconds: float = 0.0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Rows decoded since the daemon started, by outcome."""

    new: int = 0
    revised: int = 0
    duplicate: int = 0
    dead: int = 0
    expired: int = 0  # older than the retention of samples, not stored


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterCounts:
    """Dead letters (frames and rows) written since the daemon started, by stage."""

    decode: int = 0
    insert: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatus:
    """The token's lifetime. Never contains the token itself."""

    expires_at: datetime | None = None
    life_seconds: float | None = None
    key_refused: bool = False  # by the last login
    logins: Mapping[str, int] = field(default_factory=dict)  # by outcome: ok, refused, unavailable, nonsense


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A loop or thread that must keep advancing, such as the event loop or the spool's thread."""

    name: str
    age_seconds: float  # since it last advanced
    limit_seconds: float

    def __str__(self) -> str:
        return f"{self.name} has not advanced for {self.age_seconds:.0f} s (limit {self.limit_seconds:.0f} s)"

    @property
    def stuck(self) -> bool:
        return self.age_seconds > self.limit_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyStatus:
    """Which of the instances that stand by for each other receives."""

    role: Literal["receiver", "standby", "waiting"]  # waiting: it is not known that any instance receives
    reason: str
    receiver: str | None = None  # the other instance that holds the lease


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentError:
    """A fact of severity warning or error, as text."""

    at: datetime
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    """An instance that shares the database, by the database's clock."""

    instance_id: int
    name: str
    own: bool  # it is this daemon
    state: Literal["alive", "silent", "stopped"]  # silent: no sign of life for a minute, and no clean end
    behind_seconds: float | None = None  # the database has what it received before that; None if stopped
    position: int = 0
    heartbeat_at: datetime | None = None
    leases: tuple[str, ...] = ()  # that it holds: "receiver", "repair", "retention"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedStatus:
    """What the database says of all daemons that write to it."""

    instances: tuple[InstanceStatus, ...] = ()
    unreceived_subscriptions: int | None = None  # that no instance receives now; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole daemon at the time ``at``. Counts start at ``started_at``; times are UTC."""

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
    standby: StandbyStatus | None = None  # None: provider.standby is off
    pulses: tuple[Heartbeat, ...] = ()
    instances: tuple[InstanceStatus, ...] = ()  # of the database; empty if that cannot be read
    unreceived_subscriptions: int | None = None  # by any instance of the database; None: not known
    last_errors: tuple[RecentError, ...] = ()

    @property
    def stands_by(self) -> bool:
        """Whether another instance receives instead of this one, as the database has just confirmed."""
        return self.standby is not None and self.standby.role == "standby"

    def to_json(self) -> bytes:
        """Return status.json, including the results of both health checks.

        Texts from outside are scrubbed of secrets once more.
        """
        health = b',"healthy":%b,"ready":%b}' % (check_health(self).to_json(), check_readiness(self).to_json())
        return msgspec.json.encode(_scrubbed(self)).removesuffix(b"}") + health

    @classmethod
    def from_json(cls, body: bytes) -> Status:
        """Read what ``to_json`` of this or another version wrote; unknown keys are skipped. Raises ValueError."""
        return msgspec.json.decode(body, type=cls)


@dataclass(frozen=True, slots=True)
class HealthResult:
    """The reasons why a check failed; none if it passed."""

    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons

    def to_json(self) -> bytes:
        return msgspec.json.encode({"ok": self.ok, "reasons": self.reasons})


def check_health(status: Status) -> HealthResult:
    """Check that the daemon advances. Provider and database do not count, because a restart would not help them."""
    return HealthResult(tuple(str(heartbeat) for heartbeat in status.pulses if heartbeat.stuck))


def check_readiness(status: Status) -> HealthResult:
    """Check that every connection is established and that received data can be stored.

    While another instance is known to receive, no connection is needed.
    """
    return HealthResult(tuple(_readiness_problems(status)))


def _readiness_problems(status: Status) -> Iterator[str]:
    if status.standby is not None and status.standby.role == "waiting":
        yield f"no connection is opened: {redactor.scrub(status.standby.reason)}"
    if not status.connections:
        yield "no connection has been attempted yet"
    for connection in () if status.stands_by else status.connections:
        if not connection.connected:
            yield f"{connection.path}: not connected"
    if not status.database.up:
        error = status.database.last_error or "no attempt to reach it has succeeded yet"
        yield f"the database is unavailable: {redactor.scrub(error)}"
    if status.spool.full:
        yield "the spool is full"
    if status.spool.disk_full:
        yield "the disk of the spool is full"


def severity(fact: Fact) -> Severity:
    """Return the severity of a fact: that of its kind, or else that of its state."""
    for name in (fact.kind, fact.state):
        if name in _ERRORS:
            return "error"
        if name in _WARNINGS:
            return "warning"
    return "info"


class RecentErrors:
    """Keeps the newest facts of severity warning and error."""

    def __init__(self, max_errors: int = 20) -> None:
        self._errors: deque[RecentError] = deque(maxlen=max_errors)

    def on_fact(self, fact: Fact) -> None:
        """Keep the fact unless its severity is info."""
        if severity(fact) != "info":
            at = datetime.fromtimestamp(fact.at_us / 1_000_000, UTC)
            text = ", ".join(f"{key}: {value}" for key, value in fact.detail.items())
            self._errors.append(RecentError(at=at, kind=fact.kind, text=text))

    def newest(self) -> tuple[RecentError, ...]:
        """Return the errors, the newest last."""
        return tuple(self._errors)


def _scrubbed(status: Status) -> Status:
    # Only texts from outside, equal texts once, and copies where needed: thousands of subscriptions may share a reason.
    scrub: Callable[[Any], Any] = functools.cache(lambda text: text and redactor.scrub(text))
    return replace(
        status,
        connections=tuple(replace(item, last_error=scrub(item.last_error)) for item in status.connections),
        subscriptions=tuple(
            item if scrub(item.reason) == item.reason else replace(item, reason=scrub(item.reason))
            for item in status.subscriptions
        ),
        database=replace(status.database, last_error=scrub(status.database.last_error)),
        standby=status.standby and replace(status.standby, reason=scrub(status.standby.reason)),
        last_errors=tuple(replace(item, text=scrub(item.text)) for item in status.last_errors),
    )
