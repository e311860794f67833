"""Connect to the first host of a URL that will do: it answers, accepts writes, and was not replaced meanwhile.

libpq and the driver stop at the first host that answers, and would choose a replaced primary again and again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ingestor.errors import DatabaseUnavailable
from ingestor.store import failures
from ingestor.store.postgres_session import prepare_session, shut_down_after
from ingestor.store.server_identity import KnownServer, describe_replaced, read_identity, server_address
from ingestor.store.transaction_watchdog import watchdog

if TYPE_CHECKING:
    from psycopg import Connection

PROBE_SECONDS = 3  # to ask a server over a second connection what a COMMIT waits for

_SERVER_TEXT = re.compile(r"connection to server (?:at|on socket) .*? failed: (.*)")
_WAIT = "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = %s"

log = logging.getLogger(__name__)


class PostgresHosts:
    """The hosts of one database URL. Every connection begins with the first one, whose name is resolved again."""

    def __init__(self, shown_url: str, parameters: dict[str, Any], known_server: KnownServer, *, durable: bool) -> None:
        """``parameters`` are libpq's. ``known_server`` returns the newest server that was written to; None: unknown."""
        self.shown_url = shown_url
        self.answered = ""  # host:port of the last connection
        self.passed_over: tuple[str, ...] = ()  # the hosts before it, and why
        self.on_slow_commit: Callable[[str | None], None] = lambda _waiting: None  # see ``report_slow_commit``
        self._parameters = parameters
        self._known_server = known_server
        self._durable = durable

    def connect(self, parameters: dict[str, Any]) -> Connection[Any]:
        """Return a session that is set up. ``parameters`` are libpq's, and ``context``: the driver's adapters.

        Raises DatabaseUnsupported, DatabaseUnavailable, and with a single host the driver's error.
        """
        from psycopg import Error
        from psycopg.conninfo import conninfo_attempts

        context = parameters.pop("context", None)
        failed: list[tuple[str, Exception]] = []
        for attempt in conninfo_attempts(parameters):
            try:
                connection = self._open(attempt, context)
            except (Error, _ServerReplaced) as error:
                failed.append((_name(attempt), error))
            else:
                self._note(server_address(connection), tuple(_describe(*item) for item in failed))
                return connection
        if len({name for name, _ in failed}) == 1:
            raise failed[-1][1]
        raise _no_host(failed)

    def _open(self, attempt: dict[str, Any], context: Any) -> Connection[Any]:
        import psycopg

        connection = psycopg.connect("", context=context, **attempt)
        with watchdog.watch(connection):
            prepare_session(connection, attempt, durable=self._durable)
            self._refuse_replaced(connection)
        return connection

    def _refuse_replaced(self, connection: Connection[Any]) -> None:
        known = self._known_server()
        if known is None:
            return
        try:
            reason = describe_replaced(server_address(connection), read_identity(connection), known)
            connection.commit()
            if reason:
                raise _ServerReplaced(reason)
        except BaseException:
            connection.close()
            raise

    def _note(self, address: str, passed_over: tuple[str, ...]) -> None:
        is_new = (address, passed_over) != (self.answered, self.passed_over)
        if self._durable and passed_over and is_new:  # engines that only read are made for each read of the status
            log.info("connected to the database server %s; not used: %s", address, "; ".join(passed_over))
        self.answered, self.passed_over = address, passed_over

    def report_slow_commit(self, waiting: str | None, seconds: float) -> None:
        """Log what a COMMIT waits for, or with None that it has ended, and pass it on to ``on_slow_commit``."""
        if waiting:
            log.warning("%s; received data stays in the spool", waiting, extra={"seconds": round(seconds)})
        else:
            log.info("the COMMIT that took long has ended", extra={"seconds": round(seconds)})
        self.on_slow_commit(waiting)

    def describe_wait(self, connection: Connection[Any]) -> str:
        """Ask the server over a second connection what the session waits for. Takes seconds at most."""
        import psycopg

        address = server_address(connection)
        here = {name: str(getattr(connection.info, name)) for name in ("host", "hostaddr", "port")}
        parameters = self._parameters | here | {"connect_timeout": PROBE_SECONDS, "target_session_attrs": "any"}
        found = None
        try:
            with psycopg.connect("", **parameters) as second, shut_down_after(PROBE_SECONDS, second):
                found = second.execute(_WAIT, [connection.info.backend_pid]).fetchone()
        except psycopg.Error as error:
            return (
                f"a COMMIT gets no answer from {address}, and a second connection failed: {_describe(address, error)}"
            )
        if found == ("IPC", "SyncRep"):
            return (
                f"a COMMIT waits for a synchronous standby of {address}; see pg_stat_replication there, and"
                " synchronous_standby_names"
            )
        wait = f"waits for {found[0]} {found[1]}" if found and found[1] else "is not known to wait for anything"
        return f"a COMMIT gets no answer from {address}; by its pg_stat_activity the session {wait}"


class _ServerReplaced(DatabaseUnavailable):
    """This host must not be written to: try the next one."""


def _name(attempt: dict[str, Any]) -> str:
    host, port = attempt.get("host") or attempt.get("hostaddr") or "localhost", attempt.get("port") or "5432"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _describe(name: str, error: Exception) -> str:
    """Return the name of a host and why it cannot be used, in the words of the server or libpq."""
    if isinstance(error, _ServerReplaced):  # begins with the name
        return str(error)
    text = re.sub(r"\s*Is the server running [^?]*\?", "", failures.one_line(error))
    match = _SERVER_TEXT.search(text)
    return f"{name}: {match[1] if match else text}"


def _no_host(failed: list[tuple[str, Exception]]) -> DatabaseUnavailable:
    tried = "; ".join(dict.fromkeys(_describe(*item) for item in failed))
    remedy = "every host is tried again; check which one is the primary, and that it can be reached from here"
    codes = [getattr(error, "exit_code", None) or failures.describe(error)[1] for _, error in failed]
    return DatabaseUnavailable(f"no host of database.url can be used: {tried}; {remedy}", max(codes))
