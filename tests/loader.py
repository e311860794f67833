"""What analysts ask, asked of a full database: ``python -m tests.loader --rows 50000000 --sqlite-rows 10000000``.

Fills a throw-away PostgreSQL and a SQLite file, each in a temporary folder, with crowd sentiment in the order in which
a daemon receives it: every minute a value of each ticker. Printed are the plan of each question and a Markdown table of
how long its answer takes. With ``--url`` it asks that database, and fills it first if it has no samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, text

from ingestor.config.urls import database_url
from ingestor.store import migrate, schema
from ingestor.store.engine import connect
from tests.support.postgres import find_binaries, own_server

END = datetime(2026, 11, 1, tzinfo=UTC)  # of the samples, however many
STATEMENT_MINUTES = 100
ROUNDS = 7

SAMPLES = """
INSERT INTO samples (series_id, ts, value, revision, received_at, source, instance_id, seq)
SELECT n.series_id, m.ts, ((n.series_id * 7919 + m.seq * 104729) % 20001 - 10000) / 10000.0,
    0, m.received_at, 'stream', 1, m.seq
FROM {minutes} m CROSS JOIN series n ORDER BY m.seq, n.series_id
"""
MINUTES = {
    "postgresql": "json_to_recordset(:minutes) AS",
    "sqlite": "(SELECT value ->> 'ts' AS ts, value ->> 'received_at' AS received_at, value ->> 'seq' AS seq"
    " FROM json_each(:minutes))",
}


@dataclass(frozen=True)
class Question:
    """What is asked, and in how many milliseconds the answer is wanted from PostgreSQL with 50 million samples."""

    name: str
    query: str
    goal_ms: float | None = None


def questions(engine: Engine, ticker: str) -> list[Question]:
    hour = sql_time(engine, END - timedelta(hours=30))
    month = sql_time(engine, END - timedelta(days=30))
    return [
        Question(
            "one ticker's month",
            f"SELECT * FROM crowd_sentiment WHERE ticker = '{ticker}' AND ts >= {month} ORDER BY ts",
            100,
        ),
        Question("latest of all tickers", "SELECT * FROM latest", 300),
        Question(
            "one hour's completeness of all tickers",
            f"SELECT * FROM crowd_sentiment_hourly WHERE bucket_at = {hour}",
            2000,
        ),
        Question("one day's completeness of all tickers", f"SELECT * FROM crowd_sentiment_daily WHERE bucket_at = {sql_time(engine, END - timedelta(days=2))}"),
        Question(
            "one ticker's hours of a month",
            f"SELECT * FROM crowd_sentiment_hourly WHERE ticker = '{ticker}' AND bucket_at >= {month}",
        ),
    ]


def sql_time(engine: Engine, at: datetime) -> str:
    return f"'{at:%Y-%m-%d %H:%M:%S.%f}{'' if engine.dialect.name == 'sqlite' else '+00'}'"


# What is in the database.


def fill(engine: Engine, *, rows: int, tickers: int) -> None:
    minutes = rows // tickers
    start = END - timedelta(minutes=minutes)
    with engine.begin() as connection:
        names(connection, tickers, start)
        listening(connection, tickers, start)
    began = time.monotonic()
    for first in range(0, minutes, STATEMENT_MINUTES):
        some = range(first, min(first + STATEMENT_MINUTES, minutes))
        stamps = [start + timedelta(minutes=number) for number in some]
        parameter = json.dumps(
            [
                {"ts": stamp(at), "received_at": stamp(at + timedelta(seconds=62)), "seq": number + 1}
                for number, at in zip(some, stamps, strict=True)
            ]
        )
        source = MINUTES[engine.dialect.name]
        columns = "(ts timestamptz, received_at timestamptz, seq bigint)"
        statement = SAMPLES.format(minutes=source)
        if engine.dialect.name == "postgresql":
            statement = statement.replace("AS m CROSS", f"AS m {columns} CROSS")
        with engine.begin() as connection:
            connection.execute(text(statement), {"minutes": parameter})
        done = some.stop * tickers
        if first % (STATEMENT_MINUTES * 10) == 0:
            print(f"{done:,} samples, {done / (time.monotonic() - began):,.0f} a second", file=sys.stderr, flush=True)


def stamp(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"


def names(connection: Connection, tickers: int, start: datetime) -> None:
    numbers = range(1, tickers + 1)
    feed = {"feed": "crowd-sentiment", "first_seen_at": start}
    series = [{"series_id": n, "metric": "crowd_sentiment", "ticker": f"T{n}"} for n in numbers]
    wanted = [
        {"subscription_id": n, "path": "/real-time/crowd-sentiment", "method": "get", "params": f'{{"ticker":"T{n}"}}'}
        | {"ticker": f"T{n}"}
        for n in numbers
    ]
    instance = {"spool_id": "loader", "started_at": start, "heartbeat_at": END, "position": 1}
    connection.execute(insert(schema.instances), [{"instance_id": 1, **instance}])
    connection.execute(insert(schema.series), [feed | one for one in series])
    connection.execute(insert(schema.subscriptions), [feed | one for one in wanted])


def listening(connection: Connection, tickers: int, start: datetime) -> None:
    """Every ticker was listened to, but for a minute each day; half of those were repaired."""
    coverage, repairs, at, seq = [], [], start, 0
    while at < END:
        lost, back = min(at + timedelta(hours=23, minutes=59), END), min(at + timedelta(days=1), END)
        states = [("live", at, lost if lost < END else None)]
        if lost < END:
            states += [("disconnected", lost, lost + timedelta(seconds=5)), ("pending", lost + timedelta(seconds=5), back)]
        for state, from_at, to_at in states:
            seq += 1
            span = {"instance_id": 1, "start_seq": seq, "started_at": from_at, "ended_at": to_at, "state": state}
            coverage += [span | {"subscription_id": n} for n in range(1, tickers + 1)]
        if lost < END:
            made = {"kind": "window", "state": "done", "created_at": back, "from_ts": lost, "to_ts": back}
            repairs += [made | {"subscription_id": n} for n in range(1, tickers + 1, 2)]
        at = back
    connection.execute(insert(schema.coverage), coverage)
    if repairs:
        connection.execute(insert(schema.repairs), repairs)


# What is asked.


def measure(engine: Engine, question: Question) -> list[float]:
    """Milliseconds of each round, all rows fetched; the first is the first time that it is asked."""
    found = []
    for _ in range(ROUNDS):
        with engine.connect() as connection:
            began = time.monotonic()
            rows = len(connection.exec_driver_sql(question.query).fetchall())
            found.append(1000 * (time.monotonic() - began))
            if found[-1] > 20_000:
                break
    print(f"{question.name}: {rows:,} rows, {', '.join(f'{one:,.0f}' for one in found)} ms", file=sys.stderr, flush=True)
    return found


def plan(engine: Engine, question: Question) -> str:
    word = "EXPLAIN (ANALYZE, BUFFERS)" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with engine.connect() as connection:
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{word} {question.query}"))


def ask(url: str, *, rows: int, tickers: int) -> None:
    engine = connect(database_url(url, Path.cwd()))
    migrate.upgrade(engine)
    with engine.connect() as connection:
        empty = connection.execute(text("SELECT NOT EXISTS (SELECT 1 FROM samples)")).scalar()
    if empty:
        fill(engine, rows=rows, tickers=tickers)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE"))  # as autovacuum does in its time
    lines = []
    for question in questions(engine, f"T{tickers // 2}"):
        times = measure(engine, question)
        print(f"\n{engine.dialect.name}: {question.name}\n{question.query}\n{plan(engine, question)}\n")
        lines.append(f"| {question.name} | {times[0]:,.0f} ms | {statistics.median(times[1:] or times):,.0f} ms |")
    print("\n".join(lines))
    engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.loader")
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--tickers", type=int, default=5_000)
    parser.add_argument("--url")
    options = parser.parse_args()
    ask(options.url, rows=options.rows, tickers=options.tickers)


if __name__ == "__main__":
    main()
