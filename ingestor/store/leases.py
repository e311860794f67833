"""Leases: one daemon at a time prunes, or repairs, if several share a database."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, or_, select, update

from ingestor.store import schema
from ingestor.store.engine import insert_or_ignore


def acquire(connection: Connection, name: str, instance_id: int, duration: timedelta) -> datetime | None:
    """Take or renew the lease ``name`` until ``duration`` after now, by the clock of the database.

    Returns that clock's time, None if another instance holds the lease. Until the transaction ends, others that want
    the lease wait. One that would last much longer was taken before that clock was set back: it does not count.
    """
    c = schema.leases.c
    now = database_time(connection)
    latest = now + 2 * duration  # another transaction, which began later, may have renewed it meanwhile
    held_elsewhere = (c.name == name, c.instance_id != instance_id, c.until.between(now, latest))
    if connection.execute(select(c.name).where(*held_elsewhere)).first():
        return None  # checked first, because an UPDATE would wait for the holder's transaction, and our batches with it
    lease = {"instance_id": instance_id, "until": now + duration}
    available = (c.name == name, or_(c.instance_id == instance_id, c.until < now, c.until > latest))
    take = update(schema.leases).where(*available).values(lease)
    if connection.execute(take).rowcount == 0:
        connection.execute(insert_or_ignore(connection, schema.leases).values(name=name, **lease))
        if connection.execute(take).rowcount == 0:
            return None
    return now


def database_time(connection: Connection) -> datetime:
    """Return the time of the database's clock, which all instances share."""
    at: datetime = connection.execute(select(func.current_timestamp(type_=schema.UtcDateTime()))).scalar_one()
    return at
