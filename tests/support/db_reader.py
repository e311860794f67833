"""Read a database as an analyst does, by plain drivers and SQL, independently of the code under test."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.rows import dict_row

from .expected_rows import Key

Row = dict[str, Any]


class DbReader:
    """Reads the database of a config's URL. Each query opens its own connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._sqlite_file = urlsplit(url).path[1:] if url.startswith("sqlite") else None

    def rows(self, query: str) -> list[Row]:
        """Return the rows of a query. Columns named ``ts`` or ``…_at`` become UTC datetimes."""
        return [{name: _time(name, value) for name, value in row.items()} for row in self._execute(query)]

    def scalar(self, query: str) -> Any:
        """Return the only value of the only row."""
        (row,) = self.rows(query)
        (value,) = row.values()
        return value

    def column(self, query: str) -> list[Any]:
        """Return the only value of each row."""
        return [value for row in self.rows(query) for value in row.values()]

    def current(self) -> Mapping[Key, float]:
        """Return every sample of the view ``observations``."""
        return {_key(row): row["value"] for row in self.rows(f"SELECT {_SAMPLE} FROM observations")}

    def revisions(self) -> Mapping[Key, list[float]]:
        """Return every value of the view ``revisions``, oldest first."""
        found: dict[Key, list[float]] = defaultdict(list)
        for row in self.rows(f"SELECT {_SAMPLE} FROM revisions ORDER BY revision"):
            found[_key(row)].append(row["value"])
        return found

    def coverage(self, ticker: str) -> list[Row]:
        """Return the coverage intervals of the only subscription of this ticker, in order."""
        return self.rows(
            "SELECT c.state, c.reason, c.started_at, c.ended_at FROM coverage c JOIN subscriptions s"
            f" ON s.subscription_id = c.subscription_id WHERE s.ticker = '{ticker}' ORDER BY c.start_seq"
        )

    def states(self, ticker: str) -> list[str]:
        """Return the coverage states of this ticker, in order."""
        return [interval["state"] for interval in self.coverage(ticker)]

    def gaps(self, ticker: str) -> list[Row]:
        """Return the gaps of this ticker with their reasons."""
        return self.rows(f"SELECT states, reason, from_at, to_at FROM gaps WHERE ticker = '{ticker}' ORDER BY from_at")

    @contextmanager
    def write_locked(self) -> Iterator[None]:
        """Block every other writer until the end of the block."""
        if self._sqlite_file is None:
            with psycopg.connect(self.url) as connection:
                connection.execute("LOCK TABLE instances IN ACCESS EXCLUSIVE MODE")
                yield
            return
        with closing(sqlite3.connect(self._sqlite_file, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield

    def assert_consistent(self) -> None:
        """Assert that no entry is missing or stored twice. Call it only while no daemon writes."""
        for instance in self.rows("SELECT instance_id, position FROM instances"):
            of_instance = f"WHERE instance_id = {instance['instance_id']}"
            assert self._entries(of_instance) == list(range(1, instance["position"] + 1))
            _check_ledger(self.rows(f"SELECT * FROM batches {of_instance} ORDER BY first_seq"), instance["position"])
        assert self._sum("new_rows") == self.scalar("SELECT count(*) FROM observations")
        assert self._sum("revised_rows") == self.scalar("SELECT count(*) FROM revisions")
        assert self._sum("dead_rows") == self.scalar("SELECT count(*) FROM dead_letters WHERE row_index IS NOT NULL")

    def _entries(self, where: str) -> list[int]:
        """Return the seq of every payload, fact and dead frame."""
        tables = (f"payloads {where}", f"events {where}", f"dead_letters {where} AND row_index IS NULL")
        return sorted(seq for table in tables for seq in self.column(f"SELECT seq FROM {table}"))

    def _sum(self, column: str) -> int:
        return int(self.scalar(f"SELECT coalesce(sum({column}), 0) FROM batches"))

    def _execute(self, query: str) -> list[Row]:
        if self._sqlite_file is None:
            with psycopg.connect(self.url, options="-c timezone=UTC", row_factory=dict_row) as connection:
                return connection.execute(query).fetchall()
        with closing(sqlite3.connect(f"file:{self._sqlite_file}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(query)]


_SAMPLE = "feed, metric, ticker, user_id, ts, value"


def _check_ledger(batches: Sequence[Row], position: int) -> None:
    if not batches:
        assert position == 0
        return
    assert (batches[0]["first_seq"], batches[-1]["last_seq"]) == (1, position)
    for batch, next_batch in pairwise(batches):
        assert batch["last_seq"] + 1 == next_batch["first_seq"]
    for batch in batches:
        outcomes = sum(batch[f"{outcome}_rows"] for outcome in ("new", "revised", "duplicate", "dead", "expired"))
        assert batch["row_count"] == outcomes, batch
        assert batch["frames"] + batch["facts"] == batch["last_seq"] - batch["first_seq"] + 1, batch


def _key(row: Row) -> Key:
    ts = row["ts"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Key(row["feed"], row["metric"], row["ticker"], row["user_id"], ts)


def _time(name: str, value: Any) -> Any:
    if isinstance(value, str) and (name == "ts" or name.endswith("_at")):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return value
