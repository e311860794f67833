"""A database connection that is lost at COMMIT, and a writer that does not rest before it tries again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from sqlalchemy import Engine

from ingestor.core.entries import Entry
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.writer import Writer


class Unsteady:
    """Commits that fail when told to, before or after they are done: nobody who is told so can know which."""

    def __init__(self, engine: Engine) -> None:
        self._commit: Callable[[Any], None] = engine.dialect.do_commit
        self._left = 0
        self._done = False
        engine.dialect.do_commit = self._do_commit  # type: ignore[method-assign, assignment]

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
    """Does not wait between two tries. Remembers what it knew when it began each batch, and nothing if all was sent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.believed: dict[int, dict[tuple[str, int], float]] = {}  # by the batch's first seq: (ticker, ts) → value

    def _pause(self, seconds: float) -> None:
        pass

    def _assembled(self, entries: Sequence[Entry], known: RecentValueCache | None) -> BatchBuilder:
        if known is None:
            self.believed[entries[0][0]] = {}
        return super()._assembled(entries, known)

    def _begun(self, after: int) -> BatchBuilder:
        # What was begun further on, in another belief of where this one would end, was never written.
        self.believed = {first: known for first, known in self.believed.items() if first <= after}
        self.believed[after + 1] = contents(self._known)
        return super()._begun(after)

    @property
    def knows(self) -> dict[tuple[str, int], float]:
        """Of what is committed."""
        return contents(self._known) if self._ahead is None else self.believed[self._ahead.batch.first_seq]


def contents(known: RecentValueCache) -> dict[tuple[str, int], float]:
    """What it says last of each ticker and ts: of the two generations the younger counts."""
    return {
        (series[2], ts_us): value
        for generation in (known._old, known._young)
        for series, values in generation.items()
        for ts_us, value in values.items()
    }
