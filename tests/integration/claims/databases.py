"""The database of a scenario: emptied at its beginning, and put back to what it was when a step says so."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Protocol

import psycopg
from sqlalchemy import Engine, event

from ingestor.store import schema
from ingestor.store.engine import make_engine

_TABLES = [table.name for table in schema.metadata.sorted_tables]


class Database(Protocol):
    """A database whose state can be kept and put back."""

    url: str
    engine: Engine  # for the judge
    several_hosts: bool

    def empty(self) -> None: ...

    def keep(self) -> None: ...

    def put_back(self) -> bool:
        """Go back to what was kept, if anything was. Every session ends."""

    def close(self) -> None: ...


class SqliteDatabase:
    """A file. It is kept and put back while no daemon runs."""

    several_hosts = False

    def __init__(self, template: Path, folder: Path) -> None:
        self._template = template
        self._file = folder / "ingestor.db"
        self._kept: Path | None = None
        self.url = f"sqlite:///{self._file}"
        self.engine = make_engine(self.url)

    def empty(self) -> None:
        self._kept = None
        self._replace(self._template)

    def keep(self) -> None:
        self._kept = self._file.with_name("kept.db")
        self._kept.unlink(missing_ok=True)
        with closing(sqlite3.connect(self._file)) as database, closing(sqlite3.connect(self._kept)) as copy:
            database.backup(copy)

    def put_back(self) -> bool:
        if self._kept is not None:
            self._replace(self._kept)
        return self._kept is not None

    def _replace(self, by: Path) -> None:
        self.engine.dispose()
        for name in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + name).unlink(missing_ok=True)
        shutil.copy(by, self._file)

    def close(self) -> None:
        self.engine.dispose()


class PostgresDatabase:
    """A database whose rows and sequences are put back while daemons run: to them, another server took over."""

    several_hosts = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        # Tables without statistics let a plan look expensive, and compiling it takes longer than running it.
        event.listen(self.engine, "connect", lambda connection, _: connection.execute("SET jit = off"))
        self._plain = psycopg.connect(url, autocommit=True)
        self._kept = False
        self._plain.execute("CREATE SCHEMA kept")
        for table in _TABLES:
            self._plain.execute(f"CREATE UNLOGGED TABLE kept.{table} AS TABLE {table} WITH NO DATA")
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        found = self._plain.execute(f"{query} AND is_identity = 'YES'").fetchall()
        self._sequences = [f"pg_get_serial_sequence('{table}', '{column}')" for table, column in found]
        self._positions: list[tuple[int, bool]] = []
        for table in _TABLES:
            self._plain.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")

    def empty(self) -> None:
        self._kept = False
        # Not TRUNCATE, which makes new files: these tables hold a few rows.
        self._run(*(f"DELETE FROM {table}" for table in reversed(_TABLES)))
        self._run(*(f"SELECT setval({sequence}, 1, false)" for sequence in self._sequences))

    def keep(self) -> None:
        self._kept = True
        self._run(*(f"DELETE FROM kept.{table}; INSERT INTO kept.{table} SELECT * FROM {table}" for table in _TABLES))
        # What a standby has of a sequence is 32 numbers ahead, or exact after a backup; exact finds more.
        names = [self._scalar(f"SELECT {sequence}") for sequence in self._sequences]
        self._positions = [self._row(f"SELECT last_value, is_called FROM {name}") for name in names]

    def put_back(self) -> bool:
        if not self._kept:
            return False
        self._end_sessions()
        self._run(*(f"DELETE FROM {table}" for table in reversed(_TABLES)))
        self._run(*(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM kept.{table}" for table in _TABLES))
        for sequence, (value, is_called) in zip(self._sequences, self._positions, strict=True):
            self._plain.execute(f"SELECT setval({sequence}, {value}, {is_called})")
        return True

    def _end_sessions(self) -> None:
        self._plain.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        self.engine.dispose()

    def _run(self, *statements: str) -> None:
        self._plain.execute("; ".join(statements))

    def _row(self, query: str) -> tuple[int, bool]:
        row = self._plain.execute(query).fetchone()
        assert row is not None
        return row[0], row[1]

    def _scalar(self, query: str) -> str:
        row = self._plain.execute(query).fetchone()
        assert row is not None
        return str(row[0])

    def close(self) -> None:
        self.engine.dispose()
        self._plain.close()
