"""The target of a copy: which database may be one, and how it is marked until it is complete.

The mark is a schema revision that no program knows. So every command that would write to the database refuses it,
those of older releases as well, and no daemon goes on with half of its history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, delete, exists, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from ingestor.errors import AlreadyLocked, DatabaseUnsupported, PermissionDenied
from ingestor.store import migrate, schema
from ingestor.store.engine import repeatable_read, transaction, translate_errors
from ingestor.store.postgres_session import is_utf8

_ADVISORY_LOCK = 0x636F7079  # "copy" in ASCII: held by the process that copies into a PostgreSQL database
_EMPTY_FIRST = "name an empty database, or a SQLite file to create"


@contextmanager
def exclusive(target: Engine) -> Iterator[None]:
    """Run the block as the only copy into a PostgreSQL database. Raises AlreadyLocked."""
    if target.dialect.name != "postgresql":  # its file is locked already
        yield
        return
    with translate_errors(), target.connect() as connection:
        if not is_utf8(connection):
            raise DatabaseUnsupported("the target must have the encoding UTF8: CREATE DATABASE … ENCODING 'UTF8'")
        if not connection.execute(select(func.pg_try_advisory_lock(_ADVISORY_LOCK))).scalar_one():
            raise AlreadyLocked("another process copies into this database; wait until it has ended")
        connection.commit()
        try:
            yield
        finally:  # a server notices late that a connection was closed, and would refuse a copy that follows at once
            with suppress(SQLAlchemyError):  # a session that has ended, such as an idle one, has no lock any more
                connection.execute(select(func.pg_advisory_unlock(_ADVISORY_LOCK)))


def begin(source: Engine, target: Engine) -> None:
    """Create the tables of the target and mark it as an unfinished copy, or continue one.

    Raises PermissionDenied if it has history that the source has not, and what ``migrate`` raises for either database.
    """
    migrate.verify_revision(source)
    with repeatable_read(source) as connection:
        mark = _mark(connection)
        revision = migrate.current_revision(target)
        if revision == mark:
            return
        if revision is not None and revision.startswith(migrate.UNFINISHED_COPY):
            raise PermissionDenied(
                f"it is an unfinished copy of another database, or one that another release began; {_EMPTY_FIRST}"
            )
        if revision is not None:
            migrate.refuse_unsupported(revision)
            with repeatable_read(target) as found:
                _verify_copy(connection, found)
        migrate.upgrade(target)
        with transaction(target) as found:
            # A daemon that writes there finds no instance of its own afterwards, and is refused when it registers.
            found.execute(select(schema.instances.c.instance_id).with_for_update())
            _verify_copy(connection, found)
            found.execute(delete(schema.connections))
            found.execute(delete(schema.instances))
            found.execute(text("UPDATE alembic_version SET version_num = :mark"), {"mark": mark})


def mark_complete(target: Connection) -> None:
    """Give the target the schema revision that its tables have, in the caller's transaction."""
    target.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": migrate.head_revision()})


def set_sequences(target: Connection) -> None:
    """Make PostgreSQL continue after the highest id of each table that numbers its rows."""
    if target.dialect.name != "postgresql":
        return
    for table in schema.metadata.tables.values():
        for column in table.primary_key.columns:
            if column.identity is not None:
                sequence, newest = func.pg_get_serial_sequence(table.name, column.name), func.max(column)
                target.execute(select(func.setval(sequence, func.coalesce(newest, 1), newest.is_not(None))))


_POSITION = (schema.instances.c.instance_id, schema.instances.c.spool_id, schema.instances.c.position)
_FILLED = (schema.series, schema.samples, schema.payload_blocks, schema.events, schema.batches, schema.subscriptions)


def _mark(source: Connection) -> str:
    """Return the mark of an unfinished copy of this source with this program's schema, at most 32 characters."""
    first = source.execute(select(*_POSITION[:2]).order_by(_POSITION[0]).limit(1)).one_or_none()
    text_ = f"{migrate.head_revision()} {tuple(first or ())}"
    return migrate.UNFINISHED_COPY + hashlib.sha256(text_.encode()).hexdigest()[:24]


def _verify_copy(source: Connection, target: Connection) -> None:
    """Raise PermissionDenied unless the target is empty, or an older copy that no daemon has written to."""
    rows = target.execute(select(*_POSITION)).all()
    ours = {row.instance_id: row for row in source.execute(select(*_POSITION))}
    for row in rows:
        our = ours.get(row.instance_id)
        if our is None or our.spool_id != row.spool_id or our.position < row.position:
            raise PermissionDenied(f"it has data of instance {row.instance_id} that the source lacks; {_EMPTY_FIRST}")
        if not _has_newest_batch(source, target, row.instance_id):
            raise PermissionDenied(
                f"its ledger of instance {row.instance_id} is not the source's: a daemon has written to it, or the"
                f" source was set back to an older copy since; {_EMPTY_FIRST}"
            )
    if not rows and any(target.execute(select(exists().select_from(table))).scalar() for table in _FILLED):
        raise PermissionDenied(f"it has rows of unknown origin; {_EMPTY_FIRST}")


def _has_newest_batch(source: Connection, target: Connection, instance_id: int) -> bool:
    """Return whether the source has the last batch of an instance, or had it: retention deletes old ones."""
    c = schema.batches.c
    query = select(c.first_seq, c.last_seq, c.committed_at).where(c.instance_id == instance_id)
    newest = query.order_by(c.first_seq.desc()).limit(1)
    theirs = target.execute(newest).one_or_none()
    if theirs is None:
        return True
    ours = source.execute(newest.where(c.first_seq <= theirs.first_seq)).one_or_none()
    return ours is None or tuple(ours) == tuple(theirs)
