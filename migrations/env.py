"""How Alembic reaches a database: through the connection it is handed, else through the config's ``database.url``.

The daemon comes the first way (``ingestor.store.migrate``), a developer's ``alembic revision`` the second.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from ingestor.store.schema import metadata


def migrate(connection: Connection) -> None:
    """Run what was asked for in one transaction; in the caller's, where there is one."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,  # SQLite alters a table by copying it
        compare_type=True,
        transactional_ddl=True,  # SQLite can; Alembic assumes that its driver cannot
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_configured() -> None:
    """Open the database that the operator's config names."""
    from ingestor.config import load
    from ingestor.store.engine import make_engine

    engine = make_engine(load().database.url.get_secret_value())
    with engine.connect() as connection:
        migrate(connection)
    engine.dispose()


connection = context.config.attributes.get("connection")
if connection is None:
    migrate_configured()
else:
    migrate(connection)
