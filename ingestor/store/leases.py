"""One daemon at a time: who prunes, and who heals, where several share a database."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, or_, select, update

from ingestor.store import schema
from ingestor.store.engine import insert_or_ignore


def acquire(connection: Connection, name: str, instance_id: int, time: timedelta) -> datetime | None:
    """Take or renew the lease ``name``, for as long as the transaction lasts and ``time`` more.

    Returns the time; None if another instance has the lease. By the database's clock, which all of them share.
    """
    c = schema.leases.c
    at = database_time(connection)
    others = (c.name == name, c.instance_id != instance_id, c.until >= at)
    if connection.execute(select(c.name).where(*others)).first():
        return None  # asked first: to write would mean to wait for a step of theirs, and our batches with us
    mine = {"instance_id": instance_id, "until": at + time}
    to_be_had = (c.name == name, or_(c.instance_id == instance_id, c.until < at))
    take = update(schema.leases).where(*to_be_had).values(mine)
    if connection.execute(take).rowcount == 0:
        connection.execute(insert_or_ignore(connection, schema.leases).values(name=name, **mine))
        if connection.execute(take).rowcount == 0:
            return None
    return at


def database_time(connection: Connection) -> datetime:
    """By the database's clock."""
    at: datetime = connection.execute(select(func.current_timestamp(type_=schema.UtcDateTime()))).scalar_one()
    return at
