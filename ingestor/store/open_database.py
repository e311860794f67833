"""Open the configured database for a command; errors name the database and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ingestor.config.urls import mask_url
from ingestor.core.files import is_missing
from ingestor.errors import DatabaseUnavailable
from ingestor.store.engine import Engine, make_engine, sqlite_path, translate_errors
from ingestor.store.server_identity import KnownServer


@contextmanager
def open_database(url: str, *, read_only: bool = True, known_server: KnownServer = lambda: None) -> Iterator[Engine]:
    """Yield an engine for a normalized URL, and dispose of it at the end of the block. See ``make_engine``.

    Raises DatabaseUnavailable, which names the URL without its password.
    """
    path = sqlite_path(url)
    if read_only and path and is_missing(path):
        raise DatabaseUnavailable(f"{mask_url(url)}: does not exist; `ingestor run` creates it, or fix database.url")
    engine = make_engine(url, read_only=read_only, known_server=known_server)
    try:
        with name_database(url):
            yield engine
    finally:
        engine.dispose()


class _NamedDatabaseUnavailable(DatabaseUnavailable):
    """The message names the database already, which may be another one if two are open."""


@contextmanager
def name_database(url: str) -> Iterator[None]:
    """Add the name of the database to the message of DatabaseUnavailable."""
    try:
        with translate_errors():
            yield
    except _NamedDatabaseUnavailable:
        raise
    except DatabaseUnavailable as error:
        raise _NamedDatabaseUnavailable(f"{mask_url(url)}: {error}", error.exit_code) from None
