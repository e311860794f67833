"""The configured database as a command opens it: what goes wrong says which database, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ingestor.config.urls import mask_url
from ingestor.errors import DatabaseUnavailable
from ingestor.store.engine import Engine, make_engine, sqlite_path, translate_errors

_MAKE_TABLES = "`ingestor run` or `ingestor db upgrade` makes the tables"

# What the driver says → what to do about it.
_REMEDIES = (
    ("not a database", "name another file in database.url, or move this one out of the way"),
    ("unable to open", "may this user read it? if so, see database.url"),
    ("readonly database", "nobody has it open, and only who may write can open it then: read it as the daemon's user"),
    ("permission denied for schema", "GRANT CREATE, USAGE ON SCHEMA to this user, or name another in database.url"),
    ("permission denied", "GRANT it to this user, or name another in database.url"),
    ("no such table", _MAKE_TABLES),
    ('relation "', _MAKE_TABLES),
    ("column ", "the tables are of an older program; `ingestor db upgrade` brings them up to this one"),
)


@contextmanager
def open_database(url: str, *, read_only: bool = True) -> Iterator[Engine]:
    """An engine on a normalised URL, for as long as the block lasts.

    Raises DatabaseUnavailable, which names the URL without its password.
    """
    if read_only and _is_missing(url):
        raise DatabaseUnavailable(f"{mask_url(url)}: is not there yet; `ingestor run` makes it, or mend database.url")
    engine = make_engine(url, read_only=read_only)
    try:
        with with_remedy(url):
            yield engine
    finally:
        engine.dispose()


class _Explained(DatabaseUnavailable):
    """Its message names the database already: where two are open it may be the other one."""


@contextmanager
def with_remedy(url: str) -> Iterator[None]:
    """Put the database's name before what goes wrong with it, and behind that what to do."""
    try:
        with translate_errors():
            yield
    except _Explained:
        raise
    except DatabaseUnavailable as error:
        said = str(error)
        remedy = next((remedy for fragment, remedy in _REMEDIES if fragment in said), "see database.url")
        raise _Explained(f"{mask_url(url)}: {said}; {remedy}") from None


def _is_missing(url: str) -> bool:
    path = sqlite_path(url)
    if path is None:
        return False
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # not for this user: opening it will say so
        return False
    return False
