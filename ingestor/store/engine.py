"""Create engines, open transactions, and translate the errors of the drivers."""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ExceptionContext, Executable, Table, create_engine, event, exc, make_url
from sqlalchemy import Connection as Connection
from sqlalchemy import Engine as Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool

from ingestor.config.urls import POSTGRES, SQLITE, mask_url
from ingestor.core.os_errors import describe_os_error
from ingestor.errors import BatchRejected, DatabaseUnavailable, DatabaseUnsupported
from ingestor.store import failures, postgres_session, sqlite_file
from ingestor.store.postgres_hosts import PostgresHosts
from ingestor.store.server_identity import KnownServer
from ingestor.store.transaction_watchdog import watchdog

_HOSTS = "ingestor_hosts"  # an execution option
_WARNINGS = "ingestor_warnings"  # in the info of a connection
_SQLITE_ROW_ERRORS = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)

log = logging.getLogger(__name__)


def make_engine(url: str, *, read_only: bool = False, known_server: KnownServer = lambda: None) -> Engine:
    """Return an engine for the writer, or for a command that only reads. It connects when first used.

    ``known_server`` returns the newest PostgreSQL server that was written to: a primary that it replaced is not used.
    """
    if path := sqlite_path(url):
        return _make_sqlite_engine(path, read_only=read_only)
    parameters = postgres_session.connection_parameters(url)
    hosts = PostgresHosts(mask_url(url), parameters, known_server, durable=not read_only)
    # No pool_pre_ping: the writer retries a batch whose connection turns out to be dead.
    engine = create_engine(
        _engine_url(url, parameters),
        pool_size=1,
        max_overflow=2,
        hide_parameters=True,
        connect_args=parameters,
        execution_options={_HOSTS: hosts},
    )
    engine.dialect.connect = lambda *_, **parameters: hosts.connect(parameters)  # type: ignore[method-assign, assignment]
    event.listen(engine, "connect", _collect_warnings)
    event.listen(engine, "handle_error", _discard_connections)
    engine.dialect.do_commit = partial(_commit, hosts)  # type: ignore[method-assign]
    return engine


def _engine_url(url: str, parameters: dict[str, Any]) -> URL:
    """Return the URL in a form that SQLAlchemy can read: it knows no `host1:port1,host2:port2`.

    Raises DatabaseUnsupported.
    """
    count = str(parameters.get("host", "")).count(",") + 1
    if count > 1:
        user, password, database = (parameters.get(name) for name in ("user", "password", "dbname"))
        query = {name: str(parameters[name]) for name in parameters.keys() - {"user", "password", "dbname"}}
        if "," not in query.get("port", ","):  # one for all hosts, which only libpq understands
            query["port"] = ",".join([query["port"]] * count)
        return URL.create(POSTGRES, user, password, database=database, query=query)
    try:
        return make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise DatabaseUnsupported(f"database.url: {failures.one_line(error)}") from None


def postgres_hosts(engine: Engine) -> PostgresHosts | None:
    """Return what an engine knows of its servers, None for SQLite."""
    hosts: PostgresHosts | None = engine.get_execution_options().get(_HOSTS)
    return hosts


def _collect_warnings(connection: Any, record: Any) -> None:
    warnings: deque[str] = deque(maxlen=1)  # of the present transaction
    record.info[_WARNINGS] = warnings

    def collect(notice: Any) -> None:
        if notice.severity_nonlocalized == "WARNING":
            warnings.append(notice.message_primary or "")

    connection.add_notice_handler(collect)


def _commit(hosts: PostgresHosts, connection: Any) -> None:
    """Commit; report if it takes long. Raises DatabaseUnavailable if the commit may not have been replicated.

    A wait for a synchronous standby that is cancelled ends as a COMMIT with a warning. The text may be translated, and
    a COMMIT of ours has no other reason to warn, so each warning counts.
    """
    warnings = connection.info[_WARNINGS]
    warnings.clear()
    driver_connection = connection.driver_connection
    with watchdog.watch_commit(
        driver_connection, partial(hosts.describe_wait, driver_connection), hosts.report_slow_commit
    ):
        connection.commit()
    if warnings:
        raise DatabaseUnavailable(
            f"a COMMIT ended with a warning ({warnings[0]}): it may be missing on the synchronous standby, so it counts"
            " as not written until a later COMMIT ends without one; see whether the standby streams, and what cancels"
            " the waits for it"
        )


def _discard_connections(context: ExceptionContext) -> None:
    """Begin with new connections after a failure that may last as long as the session, such as a read-only one."""
    error = context.original_exception
    if _is_driver_error(error) and not _is_row_error(error):
        context.is_disconnect = True
        # Not the whole pool: its connections would count as older than this moment, and so would each new one if the
        # clock is set back now.
        context.invalidate_pool_on_disconnect = False


def shown_url(engine: Engine) -> str:
    """Return the URL of an engine's database without secrets."""
    hosts = postgres_hosts(engine)
    return hosts.shown_url if hosts else str(engine.url)


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite database, None for a server."""
    # Not by SQLAlchemy, which takes ? and %XX in a path for options and escapes.
    return Path(url.removeprefix(SQLITE)) if url.startswith(SQLITE) else None


def _make_sqlite_engine(path: Path, *, read_only: bool) -> Engine:
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False)

    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, creator=connect, poolclass=QueuePool, pool_size=1, hide_parameters=True)
    event.listen(engine, "connect", _configure_reader if read_only else _configure_writer)
    sqlite_file.watch(engine, path, warn=not read_only)
    # The driver's own BEGIN is late and DEFERRED: a second writer would fail in the middle of its transaction.
    event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE"))
    event.listen(engine, "handle_error", _discard_connections)
    event.listen(engine, "handle_error", lambda context: _note_file(context.original_exception, str(path)))
    return engine


def _note_file(error: BaseException, path: str | None) -> None:
    if isinstance(error, sqlite3.Error) and path:
        failures.note_file(error, Path(path))


def _configure_writer(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # a commit is on disk before the spool forgets its entries
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    _configure_reader(connection, _)


def _configure_reader(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute("PRAGMA cache_size=-65536")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Run the block in a transaction. Commit at its end, roll back on an error.

    Raises what ``translate_errors`` does. If the transaction takes too long, its connection is shut down, which looks
    like a lost server.
    """
    with translate_errors(), engine.connect() as connection:
        driver_connection = connection.connection.driver_connection
        with watchdog.watch(driver_connection), _discarding(connection), connection.begin():
            yield connection


@contextmanager
def _discarding(connection: Connection) -> Iterator[None]:
    """Do what ``_discard_connections`` does for the driver's cursors, which bypass the engine's events."""
    try:
        yield
    except Exception as error:
        _note_file(error, connection.engine.url.database)
        is_translated = isinstance(error, DatabaseUnavailable)  # in a savepoint
        if is_translated or (_is_driver_error(error) and not _is_row_error(error)):
            connection.invalidate()
        raise


@contextmanager
def repeatable_read(engine: Engine) -> Iterator[Connection]:
    """Open a connection whose reads all see the same snapshot. Raises what ``translate_errors`` does."""
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
    """Turn the errors of drivers into DatabaseUnavailable (try again) or BatchRejected (a row is at fault).

    An error that is not clearly the fault of a row means unavailable: a vain retry does no harm, whereas a good row
    that becomes a dead letter is missing in the tables.
    """
    try:
        yield
    except exc.DBAPIError as error:
        raise _translate(error.orig or error) from None  # SQLAlchemy adds the statement: long, and no help
    except exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(f"{failures.one_line(error)}; see database.url") from None
    except (OverflowError, UnicodeEncodeError) as error:
        raise BatchRejected(failures.one_line(error)) from None
    except OSError as error:  # no descriptor, memory or thread left
        raise DatabaseUnavailable(describe_os_error(error.errno, failures.one_line(error))) from None
    except Exception as error:
        if _is_driver_error(error):
            raise _translate(error) from None  # of a cursor that bypasses SQLAlchemy
        raise


def _translate(error: BaseException) -> DatabaseUnavailable | BatchRejected:
    if _is_row_error(error):
        return BatchRejected(failures.one_line(error))
    log.debug("error of the database's driver: %s", failures.one_line(error))
    return DatabaseUnavailable(*failures.describe(error))


def _is_driver_error(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("psycopg", "sqlite3")


def _is_row_error(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None)  # PostgreSQL: 22 data exception, 23 integrity, 54 program limit exceeded
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if (state and state[:2] in ("22", "23", "54")) or code in _SQLITE_ROW_ERRORS:
        return True
    # psycopg checks some values before it sends them; such an error has no state.
    return isinstance(error, OverflowError | UnicodeEncodeError) or type(error).__name__ == "DataError"
