"""The table and the writer of the naive scripts. SQLite runs with its defaults: durable, without WAL."""

import sqlite3
from typing import Any
from urllib.parse import urlsplit

TABLE = (
    "CREATE TABLE samples (ticker varchar(64) NOT NULL, ts timestamptz NOT NULL, value double precision NOT NULL,"
    " PRIMARY KEY (ticker, ts))"
)
_INSERT = "INSERT INTO samples VALUES ({0}, {0}, {0}) ON CONFLICT DO NOTHING"


class Writer:
    """Commits after each event."""

    def __init__(self, database: str) -> None:
        if database.startswith("sqlite"):
            self._db: Any = sqlite3.connect(urlsplit(database).path.removeprefix("/"), check_same_thread=False)
            self._insert = _INSERT.format("?")
        else:
            import psycopg

            self._db = psycopg.connect(database)
            self._insert = _INSERT.format("%s")
        self._db.execute(TABLE)
        self._db.commit()

    def write(self, rows: list[dict[str, str]]) -> None:
        values = [(row["ticker"], row["ts"], float(row["average_sentiment"])) for row in rows]
        self._db.cursor().executemany(self._insert, values)
        self._db.commit()
