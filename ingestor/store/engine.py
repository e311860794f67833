"""The engine: what differs between databases before the first row, and what their errors mean to us."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection as Connection
from sqlalchemy import Engine as Engine
from sqlalchemy import Executable, Table, create_engine, event, exc, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool

from ingestor.errors import BatchRejected, DatabaseUnavailable

STATEMENT_TIMEOUT_SECONDS = 60  # a hung query must not stop the writer for ever
TRANSACTION_TIMEOUT_SECONDS = (
    600.0  # nor a server that stands still, or a commit that waits for a standby: no timeout of its ends those
)
LOCK_TIMEOUT_SECONDS = 15
CONNECT_TIMEOUT_SECONDS = 10
_POSTGRES_OPTIONS = (
    f"-c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s -c lock_timeout={LOCK_TIMEOUT_SECONDS}s -c timezone=UTC"
    " -c default_transaction_isolation=read\\ committed"
)
log = logging.getLogger(__name__)

_SQLITE_REJECTS = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)


def make_engine(url: str, *, read_only: bool = False) -> Engine:
    """An engine for the writer (default) or for a command that only reads. Connects when first used."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(url, Path(parsed.database or ""), read_only=read_only)
    arguments = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "options": _POSTGRES_OPTIONS,
        "application_name": "ingestor",
        # A peer that vanished without a word is noticed within a minute, also in the midst of a statement.
        "keepalives_idle": 20,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 50_000,
    }
    # One connection, and no check before use: the writer retries a batch whose connection turns out to be dead.
    engine = create_engine(url, pool_size=1, max_overflow=2, hide_parameters=True, connect_args=arguments)
    if not read_only:
        event.listen(engine, "connect", _commit_durably)
    return engine


def _commit_durably(connection: Any, _: Any) -> None:
    """The spool forgets what was committed. What is stricter than ``on`` (a standby that must have it) stays so."""
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite database; None for a server's."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _sqlite(url: str, path: Path, *, read_only: bool) -> Engine:
    target = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"

    def connection() -> sqlite3.Connection:
        return sqlite3.connect(target, uri=True, timeout=5, isolation_level=None, check_same_thread=False)

    engine = create_engine(url, creator=connection, poolclass=QueuePool, pool_size=1, hide_parameters=True)
    event.listen(engine, "connect", _pragmas_to_read if read_only else _pragmas_to_write)
    # The driver's own BEGIN comes late and is DEFERRED: two writers would meet in the middle of their transactions.
    event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE"))
    return engine


def _pragmas_to_write(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # the spool forgets what was committed: it must be on the disk
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    _pragmas_to_read(connection, _)


def _pragmas_to_read(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute("PRAGMA cache_size=-65536")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Committed at the end of the block, rolled back on an error; see ``translate_errors``.

    Where a server does not answer for long, the connection is cut, as if the server had gone.
    """
    with translate_errors(), engine.connect() as connection, _patience.with_it(connection), connection.begin():
        yield connection


class _TransactionWatchdog:
    """Cuts connections that are in one transaction for ``TRANSACTION_TIMEOUT_SECONDS``.

    One thread looks after them all, since to start one for each transaction takes longer than most transactions.
    """

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}  # the driver's connection → time.monotonic()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def with_it(self, connection: Connection) -> Iterator[None]:
        line = connection.connection.driver_connection
        if isinstance(line, sqlite3.Connection):  # there is no server
            yield
            return
        with self._lock:
            self._since[line] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="patience", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._since.pop(line, None)

    def _run(self) -> None:
        while True:
            time.sleep(min(TRANSACTION_TIMEOUT_SECONDS / 20, 1.0))
            late = time.monotonic() - TRANSACTION_TIMEOUT_SECONDS
            with self._lock:  # a transaction that ends now waits for this, and is not cut in the midst of the next one
                for line in [line for line, since in self._since.items() if since < late]:
                    _cut(line)


def _cut(line: Any) -> None:
    """Whoever waits for this connection hears that it has ended."""
    try:
        with socket.socket(fileno=os.dup(line.fileno())) as socket_:
            socket_.shutdown(socket.SHUT_RDWR)
    except Exception as error:  # it has just ended by itself, however the driver says so
        log.debug("a connection that hung was gone before it was cut: %s", _line(error))


_patience = _TransactionWatchdog()


@contextmanager
def repeatable_read(engine: Engine) -> Iterator[Connection]:
    """To read all as it is at one moment, while others write; see ``translate_errors``."""
    with translate_errors(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # SQLite's transactions are snapshots
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


def fetch_all(engine: Engine, query: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:
    """Run a query in a connection of its own and return all rows. Raises what ``translate_errors`` does."""
    with translate_errors(), engine.connect() as connection:
        return connection.execute(query, parameters).all()


def insert_or_ignore(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that skips the rows whose key is already in the table."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn what drivers raise into DatabaseUnavailable (try again) or BatchRejected (a row is at fault).

    Whatever is not surely the row's fault counts as unavailable: a batch tried in vain can be tried again, a good row
    set aside is lost to its reader.
    """
    try:
        yield
    except exc.DBAPIError as error:
        raise _meaning(error.orig or error) from None  # SQLAlchemy's text carries the statement: long, and no help
    except exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(_line(error)) from None
    except (OverflowError, UnicodeEncodeError) as error:
        raise BatchRejected(_line(error)) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("psycopg", "sqlite3"):
            raise _meaning(error) from None  # COPY goes past SQLAlchemy
        raise


def _meaning(error: BaseException) -> DatabaseUnavailable | BatchRejected:
    state = getattr(error, "sqlstate", None)  # PostgreSQL; class 22 is data, 23 integrity, 54 a limit of the program
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if (state and state[:2] in ("22", "23", "54")) or code in _SQLITE_REJECTS:
        return BatchRejected(_line(error))
    # psycopg looks at values itself before it sends them, and then there is no state.
    if isinstance(error, OverflowError | UnicodeEncodeError) or type(error).__name__ == "DataError":
        return BatchRejected(_line(error))
    return DatabaseUnavailable(_line(error))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
