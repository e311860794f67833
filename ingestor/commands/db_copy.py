"""Open the target of ``ingestor db copy``, and copy into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ingestor.daemon.factory import lock_database
from ingestor.errors import PermissionDenied
from ingestor.store.copy import target as copy_target
from ingestor.store.copy.copier import CopiedTable, DatabaseCopy
from ingestor.store.engine import Engine
from ingestor.store.open_database import open_database
from ingestor.store.read.replay_source import is_same_database


@contextmanager
def open_target(source: Engine, url: str) -> Iterator[Engine]:
    """Open another database than ``source``, lock it, and mark it as an unfinished copy.

    Raises PermissionDenied, AlreadyLocked, SchemaTooOld, SchemaTooNew, SchemaUnsupported, DatabaseUnavailable.
    """
    with open_database(url, read_only=False) as target:
        if is_same_database(source, target):
            raise PermissionDenied("--into: this is the database to copy from; name another one")
        with lock_database(url), copy_target.exclusive(target):
            try:
                copy_target.begin(source, target)
            except PermissionDenied as error:
                raise PermissionDenied(f"--into: {error}") from None
            yield target


def copy_database(source: Engine, target: Engine, advance: Callable[[str, int], None]) -> list[CopiedTable]:
    """Copy, compare, and return what was found for each table. ``advance`` is that of ``DatabaseCopy``."""
    return DatabaseCopy(source, target, advance).run()
