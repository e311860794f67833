"""Connect to PostgreSQL with the settings that this program relies on, and refuse what cannot work.

A session's settings come from the server, the database, the role, the URL and the environment. What correctness depends
on is set here, after all of them. It is set by a statement, because poolers refuse the startup parameter ``options``.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ingestor.config.urls import find_hosts
from ingestor.core.extras import missing_extra
from ingestor.core.threads import start_thread
from ingestor.errors import DatabaseUnsupported

if TYPE_CHECKING:
    import sqlalchemy
    from psycopg import Connection

STATEMENT_TIMEOUT_SECONDS = 60
LOCK_TIMEOUT_SECONDS = 15
CONNECT_TIMEOUT_SECONDS = 10
PROBE_SECONDS = 5.0  # for a pooler to find a server for a second connection

_PARAMETERS = {  # unless the URL says otherwise
    "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
    "fallback_application_name": "ingestor",
    # Notice within a minute that the server host is gone, also while a statement runs.
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "50000",
}
_HOST_VARIABLES = {"host": "PGHOST", "hostaddr": "PGHOSTADDR"}
_CLUSTER = {  # unless the URL or libpq's variable says otherwise, if there are several hosts
    # libpq's default is "any": the first server that answers, and a standby would refuse every write.
    "target_session_attrs": ("PGTARGETSESSIONATTRS", "read-write"),
    # A host that drops packets costs an attempt this long, each time; it must not cost the time after a promotion.
    "connect_timeout": ("PGCONNECT_TIMEOUT", "4"),
    # The same for a session whose server is gone without a word. What was sent is sent again; that it was is no harm.
    "tcp_user_timeout": ("", "8000"),
    "keepalives_idle": ("", "4"),
    "keepalives_interval": ("", "2"),
    "keepalives_count": ("", "2"),
}
_REQUIRED = {  # whatever the URL says
    "DateStyle": "ISO, YMD",  # the driver reads no other
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "client_encoding": "UTF8",  # COPY gets UTF-8
    "extra_float_digits": "3",  # with less than 1 a value is rounded when it is read
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "row_security": "off",  # an error rather than missing rows
    "default_transaction_isolation": "read committed",
}
_TIMEOUTS = {  # unless the URL's `options` say otherwise; a version of the server may lack some
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}
# The spool forgets committed entries, so synchronous_commit must not be off. Stricter values are kept.
_SET = """
SELECT pg_backend_pid(), set_config(name, wanted, false)
FROM unnest(%s::text[], %s::text[], %s::text[]) AS our (name, wanted, unless) JOIN pg_settings USING (name)
WHERE unless = '' OR unless = 'client' AND source <> 'client' OR unless = 'on' AND setting = 'off'
"""
_WRONG_MODE = (
    "database.url leads to a connection pooler in {} mode, where a session loses its settings and prepared statements:"
    " use session mode (PgBouncer: pool_mode = session), or connect to the server directly"
)


def connection_parameters(url: str) -> dict[str, Any]:
    """Return what a normalized URL says, read as libpq reads it, and our defaults where it says nothing.

    Raises DatabaseUnsupported, which names a parameter that libpq does not know and quotes nothing else, or
    MissingExtra without psycopg.
    """
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise missing_extra("postgres", "database.url: PostgreSQL") from None

    try:
        written = conninfo_to_dict("postgresql:" + url.partition(":")[2]) | find_hosts(url)
    except ProgrammingError as error:  # its text may quote the password
        unknown = re.search(r'invalid URI query parameter: "(\w+)"', str(error))
        problem = f'has the parameter "{unknown[1]}", which is unknown to' if unknown else "cannot be parsed by"
        raise DatabaseUnsupported(
            f"database.url {problem} PostgreSQL's library; "
            "see https://www.postgresql.org/docs/current/libpq-connect.html"
        ) from None
    # What libpq's environment variables say comes before our defaults for several hosts.
    hosts = [written.get(name) or os.environ.get(variable, "") for name, variable in _HOST_VARIABLES.items()]
    is_cluster = any("," in str(listed) for listed in hosts)
    defaults = {name: value for name, (variable, value) in _CLUSTER.items() if not os.environ.get(variable)}
    return _PARAMETERS | (defaults if is_cluster else {}) | written


def prepare_session(connection: Connection[Any], parameters: dict[str, Any], *, durable: bool) -> None:
    """Set the session up, or close it and raise DatabaseUnsupported or the driver's error.

    ``parameters`` open another connection, which happens only if a pooler is in between. ``durable``: commits must
    survive a crash of the server.
    """
    from psycopg.errors import ProtocolViolation

    try:
        if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            raise DatabaseUnsupported(
                "the database has the encoding SQL_ASCII, which does not say what its bytes mean: create another one"
                " (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0) and set database.url to it"
            )
        if lost := _find_lost_options(connection, parameters.get("options", "")):
            raise DatabaseUnsupported(
                f"a connection pooler drops `options` of database.url ({', '.join(lost)}): leave them out, and set them"
                " with ALTER ROLE … SET or ALTER DATABASE … SET"
            )
        backend_pid = _apply_settings(connection, durable=durable)
        if backend_pid != connection.info.backend_pid:  # there is a pooler
            if _is_shared(connection, parameters, backend_pid):
                raise DatabaseUnsupported(_WRONG_MODE.format("transaction"))
            # Those of an earlier client with our names are still there if its server_reset_query is empty.
            connection.execute("DEALLOCATE ALL")
            connection.commit()
    except ProtocolViolation as error:
        connection.close()
        if "statement pooling" not in str(error):
            raise
        raise DatabaseUnsupported(_WRONG_MODE.format("statement")) from None
    except BaseException:
        connection.close()
        raise


def _find_lost_options(connection: Connection[Any], options: str) -> list[str]:
    """Return the settings of the startup parameter ``options`` that did not reach the server."""
    names = [name.lower().replace("-", "_") for name in re.findall(r"(?:-c\s*|--)([\w-]+)=", options)]
    if not names:
        return []
    query = "SELECT name FROM pg_settings WHERE lower(name) = ANY(%s) AND source NOT IN ('client', 'session')"
    rows = connection.execute(query, [names]).fetchall()
    connection.commit()
    return [row[0] for row in rows]


def _apply_settings(connection: Connection[Any], *, durable: bool) -> int:
    """Return the process id of the backend."""
    settings = [(name, value, "") for name, value in _REQUIRED.items()]
    settings += [(name, value, "client") for name, value in _TIMEOUTS.items()]
    settings += [("synchronous_commit", "on", "on")] if durable else []
    rows = connection.execute(_SET, [list(column) for column in zip(*settings, strict=True)]).fetchall()
    connection.commit()
    return int(rows[0][0])


def _is_shared(connection: Connection[Any], parameters: dict[str, Any], backend_pid: int) -> bool:
    """Return whether a pooler gives the backend of this idle connection to another one.

    If no second connection can be opened, the pooler counts as being in session mode.
    """
    import psycopg

    with suppress(Exception), psycopg.connect(**parameters) as other:
        with shut_down_after(PROBE_SECONDS, other):
            other_pid = _read_backend_pid(other)
        # Twice, since a pooler with two servers may give each transaction the other one (server_round_robin).
        return other_pid == backend_pid or {_read_backend_pid(connection) for _ in range(2)} != {backend_pid}
    return False


def _read_backend_pid(connection: Connection[Any]) -> int:
    ((pid,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    connection.commit()
    return int(pid)


def is_utf8(connection: sqlalchemy.Connection) -> bool:
    """Return whether the database can store every character."""
    driver_connection: Any = connection.connection.driver_connection
    return bool(driver_connection.info.parameter_status("server_encoding") == "UTF8")


def shut_down(connection: Connection[Any]) -> None:
    """Shut down the socket, so that the thread that waits for it gets an error. Does nothing if it is closed."""
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


@contextmanager
def shut_down_after(seconds: float, connection: Connection[Any]) -> Iterator[None]:
    """Shut a connection down if the block takes longer. Raises OSError if no thread can be started."""
    timer = threading.Timer(seconds, shut_down, [connection])
    timer.daemon = True
    start_thread(timer)
    try:
        yield
    finally:
        timer.cancel()
