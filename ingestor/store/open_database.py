"""Open the configured database for a command; errors name the database and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ingestor.config.urls import mask_url
from ingestor.core.files import is_missing
from ingestor.errors import DatabaseUnavailable
from ingestor.store.engine import Engine, make_engine, sqlite_path, translate_errors

_CREATE_TABLES = "`ingestor run` or `ingestor db upgrade` creates the tables"

# A part of the driver's message → what to do.
_REMEDIES = (
    ("not a database", "name another file in database.url, or move this one out of the way"),
    ("unable to open", "check that this user may read it, and database.url"),
    ("readonly database", "without a running daemon, opening it needs write access: run this as the daemon's user"),
    ("permission denied for schema", "GRANT CREATE, USAGE ON SCHEMA to this user, or name another in database.url"),
    ("permission denied", "GRANT it to this user, or name another in database.url"),
    ("no such table", _CREATE_TABLES),
    ('relation "', _CREATE_TABLES),
    ("column ", "the schema is older than this program; run `ingestor db upgrade`"),
)


@contextmanager
def open_database(url: str, *, read_only: bool = True) -> Iterator[Engine]:
    """Yield an engine for a normalized URL, and dispose of it at the end of the block.

    Raises DatabaseUnavailable, which names the URL without its password.
    """
    path = sqlite_path(url)
    if read_only and path and is_missing(path):
        raise DatabaseUnavailable(f"{mask_url(url)}: does not exist; `ingestor run` creates it, or fix database.url")
    engine = make_engine(url, read_only=read_only)
    try:
        with with_remedy(url):
            yield engine
    finally:
        engine.dispose()


class _NamedDatabaseUnavailable(DatabaseUnavailable):
    """The message names the database already, which may be another one if two are open."""


@contextmanager
def with_remedy(url: str) -> Iterator[None]:
    """Add the name of the database and what to do to the message of DatabaseUnavailable."""
    try:
        with translate_errors():
            yield
    except _NamedDatabaseUnavailable:
        raise
    except DatabaseUnavailable as error:
        message = str(error)
        remedy = next((remedy for fragment, remedy in _REMEDIES if fragment in message), "see database.url")
        raise _NamedDatabaseUnavailable(f"{mask_url(url)}: {message}; {remedy}") from None
