"""What an error of PostgreSQL or SQLite means for the operator: what has happened, and what to do.

Errors are distinguished by SQLSTATE, not by their text, which a server may translate. Refused connections are the
exception: libpq does not pass on their SQLSTATE, so the English text decides. SQLite does not pass on the system's
errno either, so the file system is asked why a file cannot be written.
"""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import NamedTuple


class Failure(NamedTuple):
    """One kind of failure. ``what`` is empty if the driver's text says it. ``exit_code`` is that of a command."""

    what: str
    remedy: str
    exit_code: int = 69


_CREATE_TABLES = "`ingestor run` or `ingestor db upgrade` creates the tables"
_RETRY = "nothing to do unless this lasts"
_UNKNOWN = Failure("the database failed", "see the log of the database server")
_UNREACHABLE = Failure("the database server cannot be reached", "check that it runs, and host and port in database.url")
_NO_ANSWER = Failure(
    "the database server does not answer", "check host and port in database.url, the network and the firewall"
)
_UNKNOWN_HOST = Failure(
    "the host of the database server is unknown",
    "correct it in database.url, or let this machine resolve it",
)
_REFUSED = Failure("the database server refused the connection", "see the log of the database server")
_LOGIN = Failure("the database server refused the login", "check the user and its password, and pg_hba.conf", 77)
_PASSWORD = Failure(
    "the database server refused the password", "correct user and password in database.url or in its url_file", 77
)
_NOT_ADMITTED = Failure(
    "pg_hba.conf does not admit this user from this host", "add a line for it there, and reload the server", 77
)
_NO_ROLE = Failure("there is no such database user", "create it (CREATE ROLE … LOGIN), or fix it in database.url", 77)
_NO_LOGIN = Failure("this database user may not log in", "ALTER ROLE … LOGIN, or name another one in database.url", 77)
_STARTING = Failure("the database server is starting", _RETRY)
_STOPPING = Failure("the database server stops or restarts", _RETRY)
_OUT_OF_DATE = Failure("tables and program do not match", "run `ingestor db upgrade`")
_TIMEOUT = Failure(
    "a statement took too long",
    "look in pg_stat_activity for what blocks or slows it; statement_timeout can be set in database.url (options)",
)
_PREPARED = Failure(
    "the session lost a prepared statement",
    "a connection pooler in transaction mode does this: use its session mode, or connect to the server directly",
)

# A SQLSTATE, or its first characters, https://www.postgresql.org/docs/current/errcodes-appendix.html. The longest wins.
_SQLSTATES = {
    "08": _UNREACHABLE,
    "08P01": Failure(
        "the connection pooler refused the session",
        "use its session mode, and ALTER ROLE … SET instead of `options` in database.url",
    ),
    "22": Failure("the database server refused a setting", "correct `options` in database.url", 78),
    "25006": Failure(
        "the session is read-only",
        "it is a standby, or default_transaction_read_only is on: name the primary in database.url"
        " (target_session_attrs=read-write), or let this role write",
    ),
    "25P": Failure("the database server ended a transaction that took too long", _RETRY),
    "26000": _PREPARED,
    "28": _LOGIN,
    "28P01": _PASSWORD,
    "3D000": Failure(
        "there is no such database", "create it (CREATE DATABASE … ENCODING 'UTF8'), or fix its name in database.url"
    ),
    "3F000": Failure("there is no such schema", "create it, or fix search_path in database.url or of the role"),
    "40": Failure("another transaction was in the way", _RETRY),
    "42": Failure("the database server refused a statement", "see its log"),
    "42501": Failure("a permission is missing", "GRANT it to this user, or name another one in database.url", 77),
    "42703": _OUT_OF_DATE,
    "42704": Failure("the database server refused a setting", "correct `options` in database.url", 78),
    "42883": _OUT_OF_DATE,
    "42P01": Failure("a table is missing or not in search_path", _CREATE_TABLES),
    "42P05": _PREPARED,
    "53": Failure("the database server lacks resources", "see its log"),
    "53100": Failure("the disk of the database server is full", "free some space there"),
    "53300": Failure(
        "the database server has too many connections", "close some, or raise max_connections or the role's limit"
    ),
    "55P03": Failure(
        "another session holds a lock on a table",
        "look in pg_locks for a transaction that stays open, or wait until it ends",
    ),
    "57014": _TIMEOUT,
    "57P": _STOPPING,
    "57P05": Failure("the database server ended an idle session", _RETRY),
    "58": Failure("the database server has an I/O error", "see its log"),
    "XX": Failure("the database server has an internal error", "see its log"),
}
_SCHEMA_PERMISSION = Failure(
    "a permission is missing", "GRANT CREATE, USAGE ON SCHEMA to this user, or name another in database.url", 77
)

# A part of the text with which a server or a pooler refuses a connection → SQLSTATE, or a failure of its own.
_CONNECTION_TEXTS: tuple[tuple[str, str | Failure], ...] = (
    (r"database .* does not exist|no such database", "3D000"),
    (r"role .* does not exist|no such user", _NO_ROLE),
    (r"not permitted to log in", _NO_LOGIN),
    (r"pg_hba\.conf", _NOT_ADMITTED),
    (r"authentication failed|no password supplied", _PASSWORD),
    (r"too many (clients|connections)|connection slots are|no more connections allowed", "53300"),
    (r"the database system is (starting|in recovery|not yet)", _STARTING),
    (r"the database system is", "57P03"),
    (
        r"session is not read-only|not in hot standby",
        Failure("this is not the server that was asked for", "remove target_session_attrs from database.url"),
    ),
    (r"session is read-only|hot standby", "25006"),
    (r"permission denied", "42501"),
    (r"unsupported startup parameter", "08P01"),
    (r"unrecognized configuration parameter|invalid value for parameter|command-line argument", "42704"),
    (
        r"certificate",
        Failure("the certificate of the database server was not accepted", "see sslrootcert in database.url"),
    ),
    (r"SSL|GSSAPI", Failure("the connection cannot be encrypted as asked", "see sslmode in database.url")),
    (r"failed to resolve host|could not translate host name|Name or service not known", _UNKNOWN_HOST),
    (r"timeout expired|No route to host|unreachable|timed out", _NO_ANSWER),
)
_SERVER_ANSWERED = re.compile(r": \S+:  ")  # libpq writes two spaces after the server's, translated, "FATAL:"
# What libpq puts before the reason.
_SERVER = re.compile(
    r'connection (?:failed|is bad): connection to server (?:at "(?P<host>[^"]*)"(?: \([^)]*\))?, port (?P<port>\d+)|on'
    r' socket "(?P<socket>[^"]*)") failed: (?:FATAL: )?'
)

_NOT_PERMITTED = Failure(
    "a permission is missing", "let this user read and write the file and its folder, or fix database.url", 77
)
_LOCKED = Failure(
    "another program holds a lock on the database file", "end its transaction, or the program, which `fuser` names"
)
_DISK_FULL = Failure("the disk of the database is full", "free some space there")
_READ_ONLY_DISK = Failure(
    "the file system of the database is read-only",
    "mount it writable; see the kernel's log, since an error of the disk may have done this",
)
_IS_FOLDER = Failure("the path of the database is a folder", "add the name of the file in database.url")
_NO_FOLDER = Failure("the folder of the database does not exist", "create it, or fix database.url")
_SQLITE_CODES = {
    sqlite3.SQLITE_PERM: _NOT_PERMITTED,
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: Failure(
        "this user may not write to the database file",
        "let it write the file and its folder, which even reading needs while no daemon runs, or run this as the"
        " daemon's user",
        77,
    ),
    sqlite3.SQLITE_IOERR: Failure("the disk of the database failed", "see the kernel's log"),
    sqlite3.SQLITE_CORRUPT: Failure(
        "the database file is damaged", "restore the file from a backup, or move it out of the way and keep it"
    ),
    sqlite3.SQLITE_FULL: _DISK_FULL,
    sqlite3.SQLITE_CANTOPEN: Failure(
        "the database file cannot be opened", "check that this user may read it, and database.url"
    ),
    sqlite3.SQLITE_NOTADB: Failure(
        "the file is not a SQLite database", "name another file in database.url, or move this one out of the way"
    ),
}
_OF_THE_DISK = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)  # which may have several causes
_SQLITE_TEXTS = (
    ("no such table", Failure("a table is missing", _CREATE_TABLES)),
    ("column ", Failure("the schema is older than this program", "run `ingestor db upgrade`")),
)


def note_file(error: BaseException, path: Path) -> None:
    """Note the database file of a SQLite error, for ``describe``."""
    vars(error)["database_file"] = path


def describe(error: BaseException) -> tuple[str, int]:
    """Return one sentence for the operator, and the exit code of a command that the error ends.

    The sentence contains the first part of the server's message only: details may quote rows.
    """
    text = _message(error)
    failure = _find_failure(error, text)
    return "; ".join((": ".join(filter(None, (failure.what, text))), failure.remedy)), failure.exit_code


def one_line(error: BaseException) -> str:
    """Return the whole text of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _message(error: BaseException) -> str:
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return primary or _SERVER.sub(_server_name, re.sub(r"\s*Is the server running [^?]*\?", "", one_line(error)))


def _server_name(match: re.Match[str]) -> str:
    host = match["host"] or match["socket"]
    port = f":{match['port']}" if match["port"] else ""
    return f"{f'[{host}]' if ':' in host else host}{port}: "


def _find_failure(error: BaseException, text: str) -> Failure:
    if isinstance(error, sqlite3.Error):
        return _sqlite_failure(error, text)
    state = getattr(error, "sqlstate", None)
    if state == "42501" and "schema" in text:
        return _SCHEMA_PERMISSION
    if state:
        return _by_state(state)
    return (
        _connection_failure(str(error)) if type(error).__name__ in ("OperationalError", "InterfaceError") else _UNKNOWN
    )


_UNKNOWN_SQLITE = Failure("the database failed", "see database.url")


def _sqlite_failure(error: sqlite3.Error, text: str) -> Failure:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    path: Path | None = getattr(error, "database_file", None)
    if path and code in _OF_THE_DISK and (found := _disk_failure(path.resolve())):
        return found
    by_text = next((failure for fragment, failure in _SQLITE_TEXTS if fragment in text), _UNKNOWN_SQLITE)
    return _SQLITE_CODES.get(code, by_text)


def _disk_failure(path: Path) -> Failure | None:
    """Return why SQLite can neither open nor write a file, as far as the file system says."""
    try:
        disk = os.statvfs(path.parent)
        is_folder = path.is_dir()
    except FileNotFoundError:
        return _NO_FOLDER
    except OSError as error:
        return _NOT_PERMITTED if isinstance(error, PermissionError) else None
    if is_folder:
        return _IS_FOLDER
    if disk.f_flag & os.ST_RDONLY:
        return _READ_ONLY_DISK
    if not disk.f_bavail or (disk.f_files and not disk.f_favail):
        return _DISK_FULL
    place = path if path.exists() else path.parent
    return None if os.access(place, os.R_OK, effective_ids=True) else _NOT_PERMITTED


def _by_state(state: str) -> Failure:
    return next((_SQLSTATES[state[:n]] for n in (5, 3, 2) if state[:n] in _SQLSTATES), _UNKNOWN)


def _connection_failure(text: str) -> Failure:
    for pattern, found in _CONNECTION_TEXTS:
        if re.search(pattern, text):
            return found if isinstance(found, Failure) else _by_state(found)
    return _REFUSED if _SERVER_ANSWERED.search(text) else _UNREACHABLE
