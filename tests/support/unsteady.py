"""A database connection that is lost at COMMIT, and a writer that does not rest before it tries again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy import Engine

from ingestor.pipeline.writer import Writer


class Unsteady:
    """Commits that fail when told to, before or after they are done: nobody who is told so can know which."""

    def __init__(self, engine: Engine) -> None:
        self._commit: Callable[[Any], None] = engine.dialect.do_commit
        self._left = 0
        self._done = False
        engine.dialect.do_commit = self._do_commit  # type: ignore[method-assign]

    def fail(self, number: int, *, done: bool) -> None:
        """The ``number``-th commit from now on fails; ``done``: though it was done."""
        self._left, self._done = number, done

    def _do_commit(self, connection: Any) -> None:
        self._left -= 1
        if self._left != 0:
            self._commit(connection)
            return
        if self._done:
            self._commit(connection)
        if isinstance(connection.driver_connection, sqlite3.Connection):
            raise sqlite3.OperationalError("disk I/O error")
        connection.driver_connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")


class HastyWriter(Writer):
    """Does not wait between two tries."""

    def _pause(self, seconds: float) -> None:
        pass
