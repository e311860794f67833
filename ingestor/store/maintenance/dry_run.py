"""Write a batch and take all of it back: whether there are tables, rights and room for it. Nothing is kept."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, NestedTransaction

from ingestor.store import migrate
from ingestor.store.engine import sqlite_path, translated
from ingestor.store.open_database import opened
from ingestor.store.write.batch import Batch, WriteResult
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo


def dry_run(url: str, instance: InstanceInfo, batch: Batch) -> WriteResult:
    """What would become of a batch, as the first of an instance that nobody has met. The schema is there, or none is.

    An empty database gets its tables for as long as this lasts. For a SQLite file that is not there, one in a folder
    beside its place is written and removed. Raises DatabaseUnavailable, which names the URL; BatchRejected, OSError.
    """
    path = sqlite_path(url)
    if path is None or path.exists():
        return _rehearse(url, instance, batch)
    nearest = next(folder for folder in path.parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".ingestor-check-", dir=nearest) as folder:
        return _rehearse(f"sqlite:///{Path(folder, path.name)}", instance, batch)


def _rehearse(url: str, instance: InstanceInfo, batch: Batch) -> WriteResult:
    with opened(url, read_only=False) as engine, translated(), engine.connect() as connection:
        whole = connection.begin()
        try:
            migrate.make_if_empty(connection)
            database = BatchWriter(_ConnectionEngine(connection))
            database.register(replace(instance, spool_id=secrets.token_hex(16)), batch.first_seq)
            return database.write(batch)
        finally:
            whole.rollback()


class _ConnectionEngine(Engine):
    """An engine whose transactions are parts of one that somebody else ends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect

    @contextmanager
    def connect(self) -> Iterator[Connection]:  # type: ignore[override]
        yield cast("Connection", _Part(self._connection))


class _Part:
    """The connection, with a savepoint for a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def begin(self) -> NestedTransaction:
        return self._connection.begin_nested()
