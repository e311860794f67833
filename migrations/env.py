"""Alembic's environment: run migrations on the connection that the caller passes, or on the configured database.

``ingestor.store.migrate`` passes its connection; `alembic revision` on the command line does not.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from ingestor.store.schema import metadata


def migrate(connection: Connection) -> None:
    """Run the migrations in one transaction: the caller's, if there is one."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,  # SQLite alters a table by copying it
        compare_type=True,
        transactional_ddl=True,  # SQLite can; Alembic assumes that it cannot
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_configured() -> None:
    """Migrate the database that the configuration names."""
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
