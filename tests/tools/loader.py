"""What analysts ask, asked of a full database: ``python -m tests.tools.loader --rows 50000000 --sqlite-rows 10000000``.

Fills a throw-away PostgreSQL, then a SQLite file, with crowd sentiment in the order in which a daemon receives it:
every minute a value of each ticker. Printed are the plan of each question and a Markdown table of how long its answer
takes, all rows fetched: the first time, and the median of the times after that. With ``--url`` it asks that database,
and fills it first if it has no samples. Exit code 1 if PostgreSQL misses a goal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, text

from ingestor.config.urls import normalize_database_url
from ingestor.store import migrate, schema
from ingestor.store.engine import make_engine

from ..support.postgres_server import find_binaries, own_server

END = datetime(2026, 11, 1, tzinfo=UTC)  # of the samples, however many
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
MINUTES_PER_STATEMENT = 100
ROUNDS = 6
PATIENCE_MS = 5_000  # what takes longer is asked once

FILL = """
INSERT INTO samples (series_id, ts, value, revision, received_at, source, instance_id, seq)
SELECT n.series_id, m.ts, ((n.series_id * 7919 + m.seq * 104729) % 20001 - 10000) / 10000.0,
    0, m.received_at, 'stream', 1, m.seq
FROM {minutes} CROSS JOIN series n ORDER BY m.seq, n.series_id
"""
MINUTES = {
    "postgresql": "json_to_recordset(:minutes) AS m (ts timestamptz, received_at timestamptz, seq bigint)",
    "sqlite": "(SELECT value ->> 'ts' AS ts, value ->> 'received_at' AS received_at, value ->> 'seq' AS seq"
    " FROM json_each(:minutes)) m",
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how soon PostgreSQL is to have answered it where there are 50 million samples."""

    name: str
    query: str
    goal_ms: float | None = None


def questions(engine: Engine, ticker: str) -> list[Question]:
    zone = "+00" if engine.dialect.name == "postgresql" else ""
    ago = (30 * DAY, 2 * DAY, timedelta(hours=30))
    month, day, hour = (f"'{END - one:%Y-%m-%d %H:%M:%S.%f}{zone}'" for one in ago)
    mine = f"ticker = '{ticker}'"
    return [
        Question(
            "one ticker's month", f"SELECT * FROM crowd_sentiment WHERE {mine} AND ts >= {month} ORDER BY ts", 100
        ),
        Question("the latest of all tickers", "SELECT * FROM latest", 300),
        Question(
            "one hour's completeness of all tickers",
            f"SELECT * FROM crowd_sentiment_hourly WHERE bucket_at = {hour}",
            2_000,
        ),
        Question(
            "one day's completeness of all tickers", f"SELECT * FROM crowd_sentiment_daily WHERE bucket_at = {day}"
        ),
        Question(
            "the hours of one ticker's month",
            f"SELECT * FROM crowd_sentiment_hourly WHERE {mine} AND bucket_at >= {month}",
        ),
    ]


# What is in it.


def fill(engine: Engine, rows: int, tickers: int) -> None:
    minutes = rows // tickers
    start = END - minutes * MINUTE
    with engine.begin() as connection:
        for table, made in (*_names(start, tickers), *_listening(start, tickers)):
            if made:
                connection.execute(insert(schema.metadata.tables[table]), made)
    began = time.monotonic()
    for first in range(0, minutes, MINUTES_PER_STATEMENT):
        numbers = range(first, min(first + MINUTES_PER_STATEMENT, minutes))
        statement = text(FILL.format(minutes=MINUTES[engine.dialect.name]))
        with engine.begin() as connection:
            connection.execute(statement, {"minutes": json.dumps([_minute(start, number) for number in numbers])})
    seconds = time.monotonic() - began
    print(f"{engine.dialect.name}: {minutes * tickers:,} samples in {seconds:,.0f} s", file=sys.stderr, flush=True)


def _minute(start: datetime, number: int) -> dict[str, Any]:
    at = start + number * MINUTE
    stamps = {"ts": at, "received_at": at + timedelta(seconds=62)}
    return {"seq": number + 1} | {name: f"{stamp:%Y-%m-%d %H:%M:%S.%f}" for name, stamp in stamps.items()}


def _names(start: datetime, tickers: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    numbers = range(1, tickers + 1)
    feed = {"feed": "crowd-sentiment", "first_seen_at": start}
    endpoint = feed | {"path": "/real-time/crowd-sentiment", "method": "get"}
    instance = {"instance_id": 1, "spool_id": "loader", "started_at": start, "heartbeat_at": END, "position": 1}
    yield "instances", [instance]
    yield "series", [feed | {"series_id": n, "metric": "crowd_sentiment", "ticker": f"T{n}"} for n in numbers]
    params = [(n, f"T{n}", f'{{"ticker":"T{n}"}}') for n in numbers]
    yield "subscriptions", [endpoint | {"subscription_id": n, "ticker": t, "params": p} for n, t, p in params]


def _listening(start: datetime, tickers: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """All was listened to but for a minute of each day, which is repaired for every other ticker."""
    coverage: list[dict[str, Any]] = []
    repairs: list[dict[str, Any]] = []
    at = start
    while at < END:
        back = at + DAY
        lost = back - MINUTE
        spans = [("live", at, lost), ("disconnected", lost, back - MINUTE / 2), ("pending", back - MINUTE / 2, back)]
        for state, from_at, to_at in [("live", at, None)] if back > END else spans:
            span = {"instance_id": 1, "start_seq": len(coverage), "started_at": from_at, "ended_at": to_at}
            coverage += [span | {"state": state, "subscription_id": n} for n in range(1, tickers + 1)]
        if back <= END:
            made = {"kind": "window", "state": "done", "created_at": back, "from_ts": lost, "to_ts": back}
            repairs += [made | {"subscription_id": n} for n in range(1, tickers + 1, 2)]
        at = back
    yield "coverage", coverage
    yield "repairs", repairs


# What is asked of it.


def ask(url: str, rows: int, tickers: int) -> bool:
    """Whether all goals were met."""
    engine = make_engine(normalize_database_url(url, Path.cwd()))
    migrate.upgrade(engine)
    with engine.connect() as connection:
        empty = connection.execute(text("SELECT NOT EXISTS (SELECT 1 FROM samples)")).scalar()
    if empty:
        fill(engine, rows, tickers)
    if engine.dialect.name == "postgresql":
        _vacuum(engine)
    lines, met = [], True
    for question in questions(engine, f"T{tickers // 2}"):
        first, *later = _times_ms(engine, question.query)
        usual = statistics.median(later) if later else first
        met = met and (question.goal_ms is None or usual < question.goal_ms)
        goal = f"{question.goal_ms:,.0f} ms" if question.goal_ms else ""
        lines.append(f"| {question.name} | {first:,.0f} ms | {usual:,.0f} ms | {goal} |")
        print(f"{engine.dialect.name}: {question.query}\n{_plan(engine, question.query)}\n", flush=True)
    size = f"{rows:,} samples of {tickers:,} tickers"
    head = [f"| {engine.dialect.name}, {size} | first | then | goal |", "|---|---|---|---|"]
    print("\n".join([*head, *lines]), end="\n\n", flush=True)
    engine.dispose()
    return met


def _vacuum(engine: Engine) -> None:
    """As the server does by itself in its time."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))


def _times_ms(engine: Engine, query: str) -> list[float]:
    times: list[float] = []
    with engine.connect() as connection:
        while len(times) < ROUNDS and (not times or times[-1] < PATIENCE_MS):
            began = time.monotonic()
            connection.exec_driver_sql(query).fetchall()
            times.append(1000 * (time.monotonic() - began))
    return times


def _plan(engine: Engine, query: str) -> str:
    word = "EXPLAIN (ANALYZE, BUFFERS)" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with engine.connect() as connection:
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{word} {query}"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.loader", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000_000, help="in PostgreSQL, or what --url names")
    parser.add_argument("--sqlite-rows", type=int, default=10_000_000, help="0: no SQLite")
    parser.add_argument("--tickers", type=int, default=5_000)
    parser.add_argument("--url", help="this database only")
    asked = parser.parse_args()
    if asked.url:
        return not ask(asked.url, asked.rows, asked.tickers)
    binaries = find_binaries()
    if binaries is None:
        sys.exit("PostgreSQL: install it, or set INGESTOR_TEST_PG_BIN (folder)")
    with own_server(binaries) as server:
        met = ask(server.url(), asked.rows, asked.tickers)
    if asked.sqlite_rows:
        with tempfile.TemporaryDirectory() as folder:
            ask(f"sqlite:///{folder}/ingestor.db", asked.sqlite_rows, asked.tickers)
    return not met


if __name__ == "__main__":
    sys.exit(main())
