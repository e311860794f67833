"""Commits that fail on request, and a record of what the dedup cache held when each batch was begun."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeAlias

import psycopg
from sqlalchemy import Engine

from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.decoder import Decoder
from ingestor.pipeline.dedup import RecentValueCache

CachedValues: TypeAlias = dict[tuple[str, tuple[str, int]], float]  # (connection, (ticker, ts)) → value


class FlakyCommits:
    """Makes a commit fail before or after it is done; the caller cannot know which."""

    def __init__(self, engine: Engine) -> None:
        self._commit: Callable[[Any], None] = engine.dialect.do_commit
        self._left = 0
        self._done = False
        engine.dialect.do_commit = self._do_commit  # type: ignore[method-assign, assignment]

    def fail(self, number: int, *, done: bool) -> None:
        """Let the ``number``-th commit from now on fail; with ``done`` only after it was done."""
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


class CacheRecorder:
    """Options of a Writer (``cache``, ``new_builder``) that record the cache at the beginning of each batch."""

    def __init__(self) -> None:
        self.cache = RecentValueCache()
        self.contents: dict[int, CachedValues] = {}  # batch's first seq → content

    def new_builder(
        self, first_seq: int, decoder: Decoder, cache: RecentValueCache | None = None, *, keep_payloads: bool
    ) -> BatchBuilder:
        # Batches further on were begun on another assumption, and were never written.
        self.contents = {first: contents for first, contents in self.contents.items() if first < first_seq}
        self.contents[first_seq] = {} if cache is None else latest_values(cache)
        return BatchBuilder(first_seq, decoder, cache, keep_payloads=keep_payloads)


def latest_values(cache: RecentValueCache) -> CachedValues:
    return {(name, (series[2], ts_us)): value for (name, series, ts_us), value in cache.snapshot().items()}
