"""Which instance a run writes as. An instance belongs to the run that registered last, and only to that one.

A spool may be copied, and an older copy may be put back. So the id of a spool does not prove that the instance with
that id is ours: the run that wrote last must be one that the spool knows, and its position one that the spool can have
reached. Registration locks the row, so a transaction of an earlier run either ends before it, or changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from sqlalchemy import Connection, literal, select, update

from ingestor.core.times import to_datetime, to_us
from ingestor.store.engine import insert_or_ignore
from ingestor.store.schema import coverage, instances
from ingestor.store.server_identity import ServerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceInfo:
    """What a database records of an instance: the life of one spool."""

    spool_id: str
    name: str
    version: str
    config_sha256: str
    started_us: int
    run_id: str = ""  # the process that writes as this instance


class SpoolExtent(NamedTuple):
    """What the spool says of itself, for comparison with the instance that has its id."""

    first_seq: int  # the oldest entry that it has, or the next one
    newest_seq: int = sys.maxsize  # the newest that was found in it
    knows_run: Callable[[str], bool] = lambda _run_id: True
    left_by: Callable[[str], int | None] = lambda _run_id: None  # the newest of an earlier run
    server: tuple[str, int] | None = None  # system and timeline of the newest PostgreSQL server that it was written to


class Ownership(Enum):
    """Whether an instance is ours."""

    NEW = "the database did not know the spool"
    OURS = "this run goes on from the instance's position"
    WENT_BACK = "ours, but the instance lacks entries that the spool no longer has"
    FOREIGN = "another run writes as this instance, or did after this spool was copied"


class Registration(NamedTuple):
    """An instance, as it was found; if it was NEW, as it is now."""

    ownership: Ownership
    instance_id: int
    name: str
    position: int
    heartbeat_us: int | None
    run_id: str = ""  # that registered last before
    has_ended: bool = False  # FOREIGN, and its run came to a clean end: it received nothing after its heartbeat
    server: ServerIdentity | None = None  # None: SQLite, or this role may not read it


class LostSpan(NamedTuple):
    """What a run of another instance received in this time may be in no database."""

    instance_id: int
    since_us: int
    until_us: int
    reason: str


def claim(
    connection: Connection,
    instance: InstanceInfo,
    extent: SpoolExtent,
    *,
    is_own_commit: Callable[[Any], bool],
    lost: LostSpan | None,
) -> Registration:
    """Insert the instance, or take it over from an earlier run. One that is FOREIGN is not changed.

    ``is_own_commit`` returns whether this run has committed what the instance has beyond ``newest_seq``. ``lost`` goes
    into the coverage of a NEW instance, for each subscription that the other one wanted.
    """
    row = _lock(connection, instance)
    is_new = row is None
    if row is None:
        new = {"spool_id": instance.spool_id, "position": extent.first_seq - 1, **_columns(instance)}
        connection.execute(insert_or_ignore(connection, instances), [new])
        row = _lock(connection, instance)  # if another run has inserted it just now, it is that run's
    ownership = Ownership.NEW if is_new and row.run_id == instance.run_id else None
    ownership = ownership or judge(row, instance.run_id, extent, is_own_commit)
    if ownership is not Ownership.FOREIGN:
        this_instance = instances.c.instance_id == row.instance_id
        connection.execute(update(instances).where(this_instance).values(_columns(instance)))
    if ownership is Ownership.NEW and lost:
        _record_lost(connection, row, lost)
    heartbeat_us = None if row.heartbeat_at is None else to_us(row.heartbeat_at)
    has_ended = ownership is Ownership.FOREIGN and not _is_receiving(connection, row.instance_id)
    return Registration(ownership, row.instance_id, row.name, row.position, heartbeat_us, row.run_id, has_ended)


def judge(row: Any, run_id: str, extent: SpoolExtent, is_own_commit: Callable[[Any], bool]) -> Ownership:
    """Decide whether the instance in ``row`` is ours."""
    is_known = row.run_id == run_id or extent.knows_run(row.run_id)
    left = extent.left_by(row.run_id)
    is_left = row.position <= (extent.newest_seq if left is None else min(left, extent.newest_seq))
    is_possible = is_left or (row.run_id == run_id and is_own_commit(row))
    if not (is_known and is_possible):
        return Ownership.FOREIGN
    return Ownership.OURS if row.position >= extent.first_seq - 1 else Ownership.WENT_BACK


def _lock(connection: Connection, instance: InstanceInfo) -> Any:
    """Read the instance's row. Wait for a transaction that has moved its position, and hold up the next one."""
    query = select(instances).where(instances.c.spool_id == instance.spool_id).with_for_update()
    return connection.execute(query).one_or_none()


def _columns(instance: InstanceInfo) -> dict[str, Any]:
    return {
        "name": instance.name,
        "version": instance.version,
        "config_sha256": instance.config_sha256,
        "started_at": to_datetime(instance.started_us),
        "run_id": instance.run_id,
    }


def _is_receiving(connection: Connection, instance_id: int) -> bool:
    """Whether a subscription is wanted by the instance, as far as the database knows."""
    c = coverage.c
    wanted = (c.instance_id == instance_id, c.ended_at.is_(None), c.state != "stopped")
    return connection.execute(select(c.subscription_id).where(*wanted).limit(1)).first() is not None


def _record_lost(connection: Connection, row: Any, lost: LostSpan) -> None:
    c = coverage.c
    wanted = select(
        c.subscription_id,
        literal(row.instance_id),
        literal(row.position),
        literal(to_datetime(lost.since_us), c.started_at.type),
        literal(to_datetime(lost.until_us), c.ended_at.type),
        literal("lost"),
        literal(lost.reason),
    ).where(c.instance_id == lost.instance_id, c.ended_at.is_(None), c.state != "stopped")
    names = ["subscription_id", "instance_id", "start_seq", "started_at", "ended_at", "state", "reason"]
    connection.execute(coverage.insert().from_select(names, wanted))
    # What the spool has from before the loss follows: its intervals may overlap these, as after a clock was set back.
    mark = update(instances).where(instances.c.instance_id == row.instance_id)
    connection.execute(mark.values(stepped_back=True))
