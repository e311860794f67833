"""The lease ``receiver``: of the daemons that may use one API key in turn, its holder connects to the provider.

It belongs to a run, under the instance that this run writes as: whatever the database says after a failover, or after
the spool became another instance, a lease is ours if the run that holds it is. It is taken by single statements, each
committed by itself, so that no daemon that stops in the middle can hold up the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select, update

from ingestor.store import leases, postgres_session, schema
from ingestor.store.engine import Engine, translate_errors
from ingestor.store.server_identity import KnownServer

NAME = "receiver"


class LeaseHolder(NamedTuple):
    """An instance that holds the lease, or held it."""

    instance_id: int
    name: str
    silent_seconds: float | None  # since its last heartbeat in the database; None without one
    left_seconds: float  # until its lease ends, by the database's clock; negative if it has ended

    def __str__(self) -> str:
        return f"instance {self.instance_id} ({self.name})"


class LeaseAnswer(NamedTuple):
    """What the database answered. Without a holder and not ours, it is free, or this run has not registered yet."""

    is_ours: bool
    other: LeaseHolder | None = None  # that holds it; if it is ours now, that held it before


class ReceiverLease:
    """Takes, renews and releases the lease of one run. For any thread, one call at a time."""

    def __init__(
        self, engine: Engine, run_id: str, duration_seconds: float, *, known_server: KnownServer = lambda: None
    ) -> None:
        """``engine`` is not shared: its connection stays open between two calls, until ``known_server`` changes."""
        self._engine = engine
        self._run_id = run_id
        self._duration = timedelta(seconds=duration_seconds)
        self._limit_seconds = duration_seconds / 2  # for one call: an answer that comes later is of little use
        self._lock = threading.Lock()
        self._released = False
        self._known_server = known_server
        self._known_at_connect = known_server()

    def take(self, *, only_look: bool = False) -> LeaseAnswer:
        """Take or renew the lease, unless another run holds it. Raises DatabaseUnavailable and BatchRejected."""
        with self._lock, self._session() as connection:
            before = _read_holder(connection)
            own_id = _own_instance_id(connection, self._run_id)
            if own_id is None or self._released:
                return LeaseAnswer(False)
            if before is not None and before.run_id == self._run_id:
                _rename(connection, before.instance_id, own_id)
                before = None
            if only_look:
                return LeaseAnswer(False, _describe(before) if before and before.until >= before.now else None)
            if leases.acquire(connection, NAME, own_id, self._duration) is not None:
                return LeaseAnswer(True, before and _describe(before))
            after = _read_holder(connection)
            return LeaseAnswer(False, after and _describe(after))

    def release(self) -> None:
        """Let another instance take the lease at once. ``take`` takes none until ``resume``. Raises as it does."""
        self._released = True
        with self._lock, self._session() as connection:
            own_id = _own_instance_id(connection, self._run_id)
            now = leases.database_time(connection)
            c = schema.leases.c
            held = (c.name == NAME, c.instance_id == own_id, c.until > now)
            connection.execute(update(schema.leases).where(*held).values(until=now))

    def resume(self) -> None:
        """Let ``take`` work again."""
        self._released = False

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        known = self._known_server()
        if known != self._known_at_connect:  # connecting refuses a server that was replaced
            self._engine.dispose()
            self._known_at_connect = known
        with translate_errors(), self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            driver_connection: Any = connection.connection.driver_connection
            with postgres_session.shut_down_after(self._limit_seconds, driver_connection):  # a server may hang
                yield connection


def _own_instance_id(connection: Connection, run_id: str) -> int | None:
    """Return the instance that this run registered last; None before that, or if another run has taken it over."""
    c = schema.instances.c
    query = select(func.max(c.instance_id)).where(c.run_id == run_id)
    return connection.execute(query).scalar()


def _read_holder(connection: Connection) -> Any:
    lease, instance = schema.leases.c, schema.instances.c
    now = func.current_timestamp(type_=schema.UtcDateTime())
    query = (
        select(lease.instance_id, lease.until, instance.name, instance.run_id, instance.heartbeat_at, now.label("now"))
        .outerjoin(schema.instances, instance.instance_id == lease.instance_id)
        .where(lease.name == NAME)
    )
    return connection.execute(query).one_or_none()


def _describe(row: Any) -> LeaseHolder:
    silent = None if row.heartbeat_at is None else max(0.0, _seconds(row.now, row.heartbeat_at))
    return LeaseHolder(row.instance_id, row.name or "unknown", silent, _seconds(row.until, row.now))


def _seconds(later: datetime, earlier: datetime) -> float:
    return (later - earlier).total_seconds()


def _rename(connection: Connection, instance_id: int, own_id: int) -> None:
    """Let our lease go on under the instance that this run writes as now."""
    if instance_id != own_id:
        c = schema.leases.c
        mine = (c.name == NAME, c.instance_id == instance_id)
        connection.execute(update(schema.leases).where(*mine).values(instance_id=own_id))
