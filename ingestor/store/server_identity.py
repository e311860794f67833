"""Which PostgreSQL server a connection leads to.

A primary that was replaced and comes back is the same system on an older timeline: `initdb` gives a system its number,
which its standbys and copies share; each promotion and each point-in-time recovery begins a new timeline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import sqlalchemy
    from psycopg import Connection

_FUNCTIONS = ("pg_control_system()", "pg_walfile_name(pg_lsn)", "pg_current_wal_lsn()")
_PERMITTED = (
    "SELECT bool_and(coalesce(has_function_privilege(to_regprocedure(f), 'execute'), false)) FROM unnest(%s::text[]) f"
)
# pg_control_checkpoint() would name the old timeline until the first checkpoint after a promotion.
_IDENTITY = """
SELECT system_identifier::text, CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END
FROM pg_control_system()
"""

log = logging.getLogger(__name__)


class ServerIdentity(NamedTuple):
    """A system and its timeline, which rises."""

    system: str
    timeline: int


KnownServer: TypeAlias = Callable[[], tuple[str, int] | None]  # the newest server that was written to


def read_server_identity(connection: sqlalchemy.Connection) -> ServerIdentity | None:
    """Return what a connection leads to. None for SQLite, a standby, or if this role may not read it."""
    if connection.dialect.name != "postgresql":
        return None
    return read_identity(connection.connection.driver_connection)  # type: ignore[arg-type]


def read_identity(connection: Connection[Any]) -> ServerIdentity | None:
    """Do the same for a connection of the driver. The transaction stays open."""
    if not connection.execute(_PERMITTED, [list(_FUNCTIONS)]).fetchall()[0][0]:
        log.debug("this role may not read the server's timeline: a replaced primary that comes back is not recognized")
        return None
    ((system, wal_file),) = connection.execute(_IDENTITY).fetchall()
    return ServerIdentity(system, int(wal_file[:8], 16)) if wal_file else None


def server_address(connection: Connection[Any]) -> str:
    """Return host and port as connected, without secrets: ``db1:5432``, ``[::1]:5432``, ``/run/postgresql:5432``."""
    host, port = connection.info.host, connection.info.port
    return f"[{host}]:{port}" if ":" in host and not host.startswith("/") else f"{host}:{port}"


def describe_replaced(address: str, found: ServerIdentity | None, known: tuple[str, int] | None) -> str | None:
    """Return why a server must not be written to, and what to do; None if it may.

    Another system (a dump restored elsewhere) and the same timeline (a restored copy) are accepted.
    """
    if found is None or known is None or found.system != known[0] or found.timeline >= known[1]:
        return None
    return (
        f"{address} is a primary that was replaced: it is on timeline {found.timeline} of system {found.system}, and"
        f" timeline {known[1]} was written to since; stop it, and make it a standby of the new primary (pg_rewind or"
        " pg_basebackup). If it is the one to go on with, raise its timeline: restart it with a standby.signal, and"
        " promote it"
    )
