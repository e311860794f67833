"""Read what is committed in the database that is measured."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg

POSTGRES_BYTES = """
SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
SQLITE_BYTES = """
SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""


class CommittedRows:
    """Reads committed rows from the database, because requests to the daemon would take time from its work."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None

    def rows_of(self, query: str) -> list[tuple[Any, ...]]:
        """Return all rows; an empty list while the table does not exist."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            return list(self._connection.execute(query).fetchall())
        except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):
            return []

    def scalar(self, query: str) -> int:
        rows = self.rows_of(query)
        return int(rows[0][0] or 0) if rows else 0

    def has_instance(self) -> bool:
        return self.scalar("SELECT count(*) FROM instances") > 0

    def row_count(self) -> int:
        """Return the number of decoded and committed rows, whatever their outcome."""
        return self.scalar("SELECT sum(row_count) FROM batches")

    def size_bytes(self) -> int:
        """Return the bytes on disk of all tables, with their indexes and long values."""
        return self.scalar(SQLITE_BYTES if self._url.startswith("sqlite") else POSTGRES_BYTES)

    @property
    def backend_pid(self) -> int:
        """The id of the process that serves this reader; 0 on SQLite."""
        return self._connection.info.backend_pid if isinstance(self._connection, psycopg.Connection) else 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> Any:
        if self._url.startswith("sqlite"):
            return sqlite3.connect(f"file:{self._url.removeprefix('sqlite:///')}?mode=ro", uri=True)
        return psycopg.connect(self._url, autocommit=True)
