"""Write a batch in a transaction that is rolled back, to check that tables, privileges and space suffice."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from ingestor.store import migrate
from ingestor.store.engine import sqlite_path, translate_errors
from ingestor.store.open_database import open_database
from ingestor.store.write.batch import Batch, WriteResult
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, SpoolExtent


def dry_run(url: str, instance: InstanceInfo, batch: Batch) -> WriteResult:
    """Return what writing ``batch`` as the first one of a new instance would result in. Nothing is kept.

    An empty database gets its tables for the duration of the transaction; a non-empty one must have the current
    schema. For a SQLite file that does not exist, a temporary one is written in a folder next to it. Raises
    DatabaseUnavailable, which names the URL; BatchRejected, OSError.
    """
    path = sqlite_path(url)
    if path is None or path.exists():
        return _write_and_roll_back(url, instance, batch)
    nearest = next(folder for folder in path.parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".ingestor-check-", dir=nearest) as folder:
        return _write_and_roll_back(f"sqlite:///{Path(folder, path.name)}", instance, batch)


def _write_and_roll_back(url: str, instance: InstanceInfo, batch: Batch) -> WriteResult:
    with open_database(url, read_only=False) as engine, translate_errors(), engine.connect() as connection:
        outer = connection.begin()
        try:
            migrate.create_if_empty(connection)
            writer = BatchWriter(engine, begin=partial(_savepoint, connection))
            writer.register(replace(instance, spool_id=secrets.token_hex(16)), SpoolExtent(batch.first_seq))
            return writer.write(batch)
        finally:
            outer.rollback()


@contextmanager
def _savepoint(connection: Connection) -> Iterator[Connection]:
    with translate_errors(), connection.begin_nested():
        yield connection
