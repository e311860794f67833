"""The instances that share a database: which of them are alive, how far each is behind, which leases each holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, exists, select

from ingestor.store import leases, schema
from ingestor.store.engine import translate_errors

SILENT_AFTER = timedelta(minutes=1)  # a heartbeat is published every 5 s, and a batch is committed within seconds
FORGOTTEN_AFTER = timedelta(days=7)  # since its last sign of life
MAX_INSTANCES = 50

InstanceState = Literal["alive", "silent", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """An instance, at one moment of the database's clock. Its stamps are of its own clock.

    ``silent`` has given no sign of life for SILENT_AFTER; ``stopped`` ended cleanly, or its spool is another instance.
    """

    instance_id: int
    name: str
    spool_id: str
    version: str
    position: int
    heartbeat_at: datetime | None  # everything received before is in the tables
    last_sign_at: datetime  # heartbeat, commit or start, whichever was last
    state: InstanceState
    behind_seconds: float | None  # since the heartbeat; None if stopped
    leases: tuple[str, ...]  # that it holds now

    @property
    def alive(self) -> bool:
        return self.state == "alive"

    @property
    def is_receiver(self) -> bool:
        """Whether it holds the lease to receive, which only daemons that stand by for each other take."""
        return "receiver" in self.leases


def load_instances(engine: Engine) -> list[InstanceRecord]:
    """Load the instances with a sign of life in FORGOTTEN_AFTER, at most MAX_INSTANCES, by instance id.

    One that another of the same name has replaced since is left out. Raises DatabaseUnavailable.
    """
    with translate_errors(), engine.connect() as connection:
        now = leases.database_time(connection)
        rows = [row for row in connection.execute(_query()) if now - _last_sign_at(row) < FORGOTTEN_AFTER]
        holders = connection.execute(select(schema.leases).where(schema.leases.c.until > now)).all()
    newest = sorted(rows, key=_last_sign_at)[-MAX_INSTANCES:]
    return [
        _to_record(row, now, tuple(sorted(lease.name for lease in holders if lease.instance_id == row.instance_id)))
        for row in sorted(newest, key=lambda row: row.instance_id)
        if not _is_replaced(row, rows, now)
    ]


def forgotten_instances(connection: Connection, now: datetime) -> list[int]:
    """Return the ids of the instances without a sign of life in FORGOTTEN_AFTER before ``now``."""
    rows = connection.execute(_query())
    return [row.instance_id for row in rows if now - _last_sign_at(row) >= FORGOTTEN_AFTER]


def _query() -> Any:
    i, b, e, c = schema.instances.c, schema.batches.c, schema.events.c, schema.coverage.c
    # Each subquery reads one row, by the primary key, or few, by the index of open coverage.
    last_commit = select(b.committed_at).where(b.instance_id == i.instance_id).order_by(b.first_seq.desc()).limit(1)
    last_event = select(e.kind).where(e.instance_id == i.instance_id).order_by(e.seq.desc()).limit(1)
    wanted = (c.instance_id == i.instance_id, c.ended_at.is_(None), c.state != "stopped")
    return select(
        schema.instances,
        last_commit.scalar_subquery().label("committed_at"),
        last_event.scalar_subquery().label("last_event"),
        exists().where(*wanted).label("is_receiving"),
    ).order_by(i.instance_id)


def _last_sign_at(row: Any) -> datetime:
    last: datetime = max(at for at in (row.started_at, row.heartbeat_at, row.committed_at) if at is not None)
    return last


def _is_replaced(row: Any, rows: Iterable[Any], now: datetime) -> bool:
    """Whether its host began again with an empty spool."""
    if _state(row, now) == "alive":
        return False
    later = (other for other in rows if other.instance_id > row.instance_id and other.name == row.name)
    return any(other.started_at > _last_sign_at(row) for other in later)


def _to_record(row: Any, now: datetime, held: tuple[str, ...]) -> InstanceRecord:
    state = _state(row, now)
    behind = now - (row.heartbeat_at or row.started_at)
    return InstanceRecord(
        instance_id=row.instance_id,
        name=row.name,
        spool_id=row.spool_id,
        version=row.version,
        position=row.position,
        heartbeat_at=row.heartbeat_at,
        last_sign_at=_last_sign_at(row),
        state=state,
        behind_seconds=None if state == "stopped" else max(behind.total_seconds(), 0.0),
        leases=held,
    )


def _state(row: Any, now: datetime) -> InstanceState:
    if now - _last_sign_at(row) <= SILENT_AFTER:
        return "alive"
    # Coverage is closed when a spool becomes another instance, and "stopped" while a command works without a daemon. An
    # instance that recorded nothing is not over.
    has_ended = row.last_event == "stopped" or (row.last_event is not None and not row.is_receiving)
    return "stopped" if has_ended else "silent"
