"""What a database knows of a spool that was set aside, and of an earlier attempt to salvage it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from sqlalchemy import Connection, or_, select

from ingestor.store import schema

SALVAGED = "salvaged"  # the kind of the fact that is the first entry of a salvage's instance


class SpoolOrigin(NamedTuple):
    """The instance whose spool it was."""

    instance_id: int
    name: str
    spool_id: str
    position: int  # everything up to this entry was written


def find_origin(connection: Connection, spool_id: str | None, run_ids: Collection[str]) -> SpoolOrigin | None:
    """Return the instance of a spool: by its id, or else by the daemons that wrote to it."""
    c = schema.instances.c
    is_origin = or_(c.spool_id == spool_id, c.run_id.in_([run_id for run_id in run_ids if run_id]))
    query = select(c.instance_id, c.name, c.spool_id, c.position).where(is_origin).order_by(c.instance_id.desc())
    rows = [SpoolOrigin(*row) for row in connection.execute(query)]
    return next((row for row in rows if row.spool_id == spool_id), rows[0] if rows else None)


def find_salvage(connection: Connection, spool_id: str) -> dict[str, Any] | None:
    """Return the detail of the first fact of a salvage's instance, None if it has written nothing yet."""
    e, i = schema.events.c, schema.instances.c
    first = select(e.detail).join(schema.instances, i.instance_id == e.instance_id)
    detail = connection.execute(first.where(i.spool_id == spool_id, e.seq == 1, e.kind == SALVAGED)).scalar()
    found: dict[str, Any] | None = json.loads(detail) if detail else None
    return found
