"""What the errors of databases mean for the operator."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from psycopg import errors

from ingestor.store.failures import describe

POSTGRESQL = {
    "08006": ("cannot be reached", 69),
    "25006": ("is read-only", 69),
    "26000": ("lost a prepared statement", 69),
    "28P01": ("refused the password", 77),
    "28000": ("refused the login", 77),
    "3D000": ("no such database", 69),
    "3F000": ("no such schema", 69),
    "40001": ("another transaction was in the way", 69),
    "40P01": ("another transaction was in the way", 69),
    "42501": ("a permission is missing", 77),
    "42703": ("tables and program do not match", 69),
    "42P01": ("a table is missing or not in search_path", 69),
    "42P05": ("lost a prepared statement", 69),
    "53100": ("disk of the database server is full", 69),
    "53300": ("too many connections", 69),
    "55P03": ("holds a lock", 69),
    "57014": ("took too long", 69),
    "57P01": ("stops or restarts", 69),
    "57P03": ("stops or restarts", 69),
    "58030": ("I/O error", 69),
    "XX000": ("internal error", 69),
}


@pytest.mark.parametrize(("state", "expected"), POSTGRESQL.items(), ids=POSTGRESQL)
def test_sqlstate_says_what_has_happened_in_every_language(state: str, expected: tuple[str, int]) -> None:
    sentence, exit_code = describe(errors.lookup(state)("unübersetzt"))
    what, _, rest = sentence.partition(": ")
    assert (expected[0] in what, exit_code) == (True, expected[1])
    text, _, remedy = rest.partition("; ")
    assert text == "unübersetzt"
    assert remedy


REFUSALS = {
    'FATAL:  password authentication failed for user "u"': ("refused the password", 77),
    'FATAL:  no pg_hba.conf entry for host "h", user "u"': ("pg_hba.conf does not admit", 77),
    'FATAL:  database "d" does not exist': ("no such database", 69),
    "FATAL:  sorry, too many clients already": ("too many connections", 69),
    "FATAL:  the database system is starting up": ("server is starting", 69),
    "FATAL:  the database system is shutting down": ("stops or restarts", 69),
    'FATAL:  permission denied for database "d"': ("a permission is missing", 77),
    "FATAL:  unsupported startup parameter: options": ("the connection pooler refused the session", 69),
    "FATAL:  bouncer says something new": ("the database server refused the connection", 69),
    "SCHWERWIEGEND:  Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen": ("refused the connection", 69),
    "Connection refused\n\tIs the server running on that host and accepting connections?": ("cannot be reached", 69),
    "SSL error: certificate verify failed": ("certificate of the database server was not accepted", 69),
    "server does not support SSL, but SSL was required": ("cannot be encrypted as asked", 69),
    "timeout expired": ("does not answer", 69),
}


@pytest.mark.parametrize(("text", "expected"), REFUSALS.items(), ids=[key[:30] for key in REFUSALS])
def test_refused_connection_is_told_apart_by_its_text(text: str, expected: tuple[str, int]) -> None:
    refused = f'connection failed: connection to server at "h", port 1 failed: {text}'
    sentence, exit_code = describe(psycopg.OperationalError(refused))
    assert (expected[0] in sentence.partition(": ")[0], exit_code) == (True, expected[1])
    assert "Is the server" not in sentence
    assert f": h:1: {text.partition('FATAL:  ')[2] or text.partition(chr(10))[0].replace('  ', ' ')}; " in sentence


SQLITE = {
    "database is locked": (sqlite3.SQLITE_BUSY, "another program holds a lock", "end its transaction", 69),
    "attempt to write a readonly database": (
        sqlite3.SQLITE_READONLY_DBMOVED,
        "this user may not write to the database file",
        "run this as the daemon's user",
        77,
    ),
    "database or disk is full": (sqlite3.SQLITE_FULL, "the disk of the database is full", "free some space", 69),
    "disk I/O error": (sqlite3.SQLITE_IOERR_FSYNC, "the disk of the database failed", "the kernel's log", 69),
    "file is not a database": (sqlite3.SQLITE_NOTADB, "the file is not a SQLite database", "name another file", 69),
    "unable to open database file": (sqlite3.SQLITE_CANTOPEN, "the database file cannot be opened", "may read it", 69),
    "database disk image is malformed": (
        sqlite3.SQLITE_CORRUPT,
        "the database file is damaged",
        "restore the file from a backup",
        69,
    ),
    "no such table: samples": (sqlite3.SQLITE_ERROR, "a table is missing", "creates the tables", 69),
}


@pytest.mark.parametrize(("text", "expected"), SQLITE.items(), ids=SQLITE)
def test_sqlite_error_says_what_has_happened_and_what_to_do(text: str, expected: tuple[int, str, str, int]) -> None:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode, what, remedy, exit_code = expected
    sentence, found_code = describe(error)
    assert sentence.startswith(f"{what}")
    assert f": {text}; " in sentence
    assert remedy in sentence.partition("; ")[2]
    assert found_code == exit_code
