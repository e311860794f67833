"""Time typical queries on a full database: ``python -m tests.tools.loader --rows 50000000 --sqlite-rows 10000000``.

Fills a temporary PostgreSQL, then a SQLite file, with crowd sentiment in the order in which a daemon receives it: every
minute a value of each ticker, of which one in fifty is restated. Prints the plan of each query, and a Markdown table of
its duration with all rows fetched, the first run and the median of the others, of the pages that PostgreSQL read, and
of how many times as long a view takes as an aggregate of the same samples by hand, without completeness. With ``--url``
it uses that database, and fills it if it has no samples. Exits with 1 if PostgreSQL misses a goal.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, text

from ingestor.config.urls import normalize_database_url
from ingestor.core.times import to_sqlite_text, to_us
from ingestor.store import migrate, schema
from ingestor.store.engine import make_engine
from ingestor.store.read import changes

from ..support.postgres_server import find_binaries, own_server

END = datetime(2026, 11, 1, tzinfo=UTC)  # the last sample
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
MINUTES_PER_STATEMENT = 100
RESTATED = "(seq * 31 + series_id) % 50 = 0"
PAIRS = 10_000
ROUNDS = 6
AS_IS = {"no_parameters": True}  # a percent sign is an operator
MAX_REPEATED_MS = 5_000  # a slower query runs once

FILL = """
INSERT INTO samples (series_id, ts, value, revision, received_at, source, instance_id, seq)
SELECT n.series_id, m.ts, ((n.series_id * 7919 + m.seq * 104729) % 20001 - 10000) / 10000.0,
    0, m.received_at, 1, 1, m.seq
FROM {minutes} CROSS JOIN series n ORDER BY m.seq, n.series_id
"""
MINUTES = {
    "postgresql": "json_to_recordset(:minutes) AS m (ts timestamptz, received_at timestamptz, seq bigint)",
    "sqlite": "(SELECT value ->> 'ts' AS ts, value ->> 'received_at' AS received_at, value ->> 'seq' AS seq"
    " FROM json_each(:minutes)) m",
}


# What was known of many tickers at many moments of the last hours: see docs/queries.md.
PAIRS_POSTGRESQL = """
SELECT p.ticker, p.moment, k.ts, k.value
FROM (SELECT 'T' || 1 + n * 7919 % {tickers} AS ticker, {end} - n * 104729 % 20000 * interval '1 second' AS moment
    FROM generate_series(1::bigint, {pairs}) n) p
LEFT JOIN LATERAL known_at('crowd-sentiment', 'crowd_sentiment', p.ticker, p.moment, interval '10 minutes') k ON TRUE
"""
KNOWN = """h.feed = 'crowd-sentiment' AND h.metric = 'crowd_sentiment' AND h.user_id = '' AND h.ticker = {0}
    AND h.known_from <= {1} AND (h.known_until > {1} OR h.known_until IS NULL)"""
PAIRS_SQLITE = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {pairs}), pairs AS (
    SELECT 'T' || (1 + n * 7919 % {tickers}) AS ticker, datetime({end}, -(n * 104729 % 20000) || ' seconds') AS moment
    FROM numbers
), newest AS MATERIALIZED (
    SELECT p.*, (SELECT h.ts FROM history h
        WHERE {known_p} AND h.ts <= p.moment AND h.ts >= datetime(p.moment, '-10 minutes')
        ORDER BY h.ts DESC LIMIT 1) AS ts
    FROM pairs p)
SELECT k.*, (SELECT h.value FROM history h WHERE {known_k} AND h.ts = k.ts) AS value FROM newest k
"""


@dataclass(frozen=True, slots=True)
class Query:
    """A query, how long PostgreSQL may take for it with 50 million samples, and how many pages it may read."""

    name: str
    sql: str
    goal_ms: float | None = None
    goal_pages: int | None = None
    by_hand: str | None = None  # an aggregate of the same samples, without completeness
    goal_ratio: float | None = None  # how many times as long as that one it may take, on both databases


@dataclass(frozen=True, slots=True)
class Times:
    """How long a query took: the first run, the median of the others, and their ratio to the query by hand."""

    first_ms: float
    median_ms: float
    ratio: float | None


def _aggregate(group: str, since: str, until: str, condition: str = "") -> str:
    """Return what somebody writes who knows the tables and does not ask whether an hour is complete."""
    return (
        f"SELECT {group} AS name, MAX(m.value), MIN(m.value), AVG(m.value), COUNT(*)"
        " FROM series n JOIN samples m ON m.series_id = n.series_id"
        f" WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment' {condition}"
        f" AND m.ts >= {since} AND m.ts < {until} GROUP BY {group}"
    )


def queries(engine: Engine, ticker: str, tickers: int) -> list[Query]:
    postgres = engine.dialect.name == "postgresql"
    ages = (30 * DAY, 2 * DAY, DAY, timedelta(hours=30), timedelta(hours=29), timedelta())
    times = (f"'{to_sqlite_text(to_us(END - age))}{'+00' if postgres else ''}'" for age in ages)
    month, day, next_day, hour, next_hour, end = times
    hour_of_ts = "date_trunc('hour', m.ts)" if postgres else "substr(m.ts, 1, 13)"
    of_ticker = f"ticker = '{ticker}'"
    return [
        Query(
            "one ticker's month", f"SELECT * FROM crowd_sentiment WHERE {of_ticker} AND ts >= {month} ORDER BY ts", 100
        ),
        Query("the latest of all tickers", "SELECT * FROM latest", 300),
        Query(
            "one hour's completeness of all tickers",
            f"SELECT * FROM crowd_sentiment_hourly WHERE bucket_at = {hour}",
            2_000,
            by_hand=_aggregate("n.ticker", hour, next_hour),
            goal_ratio=3,
        ),
        Query(
            "one day's completeness of all tickers",
            f"SELECT * FROM crowd_sentiment_daily WHERE bucket_at = {day}",
            by_hand=_aggregate("n.ticker", day, next_day),
            goal_ratio=3,
        ),
        Query(
            "the hours of one ticker's month",
            f"SELECT * FROM crowd_sentiment_hourly WHERE {of_ticker} AND bucket_at >= {month}",
            by_hand=_aggregate(hour_of_ts, month, end, f"AND n.{of_ticker}"),
        ),
        Query(
            "the last three days of one ticker",
            f"SELECT * FROM crowd_sentiment_daily WHERE {of_ticker} ORDER BY bucket_at DESC LIMIT 3",
        ),
        *_queries_of_history(engine, ticker, tickers),
    ]


def _queries_of_history(engine: Engine, ticker: str, tickers: int) -> list[Query]:
    postgres = engine.dialect.name == "postgresql"
    zone = "+00" if postgres else ""
    end, tolerance = (f"'{to_sqlite_text(to_us(at))}{zone}'" for at in (END, END - 10 * MINUTE))
    newest = (
        f"SELECT ts, value FROM newest('crowd-sentiment', 'crowd_sentiment', '{ticker}', 60)"
        if postgres
        else f"SELECT ts, sentiment FROM crowd_sentiment WHERE ticker = '{ticker}' ORDER BY ts DESC LIMIT 60"
    )
    known = KNOWN.format(f"'{ticker}'", end)
    pairs = (PAIRS_POSTGRESQL if postgres else PAIRS_SQLITE).format(
        tickers=tickers,
        pairs=PAIRS,
        end=f"timestamptz {end}" if postgres else end,
        known_p=KNOWN.format("p.ticker", "p.moment"),
        known_k=KNOWN.format("k.ticker", "k.moment"),
    )
    with engine.connect() as connection:
        position = connection.execute(text("SELECT MAX(position) FROM instances")).scalar_one()
    cursor = "'" + json.dumps({"positions": {"loader": position - 1}}) + "'"
    new = f"SELECT * FROM changes({cursor})" if postgres else changes.SQLITE.replace(":cursor", cursor)
    return [
        Query("the newest 60 of one ticker", newest, 100, 80),
        Query(
            "one ticker as of one moment",
            f"SELECT ts, value FROM history h WHERE {known} AND ts >= {tolerance} ORDER BY ts DESC LIMIT 1",
            100,
            50,
        ),
        Query(f"{PAIRS:,} tickers and moments", pairs, goal_pages=20 * PAIRS),
        Query("what is new since one minute", new, 1_000),
    ]


def fill(engine: Engine, rows: int, tickers: int) -> None:
    minutes = rows // tickers
    start = END - minutes * MINUTE
    with engine.begin() as connection:
        for table, rows_of_table in (*_names(start, minutes, tickers), *_coverage(start, tickers)):
            if rows_of_table:
                connection.execute(insert(schema.metadata.tables[table]), rows_of_table)
    started = time.monotonic()
    for first in range(0, minutes, MINUTES_PER_STATEMENT):
        numbers = range(first, min(first + MINUTES_PER_STATEMENT, minutes))
        statement = text(FILL.format(minutes=MINUTES[engine.dialect.name]))
        with engine.begin() as connection:
            connection.execute(statement, {"minutes": json.dumps([_minute(start, number) for number in numbers])})
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO sample_revisions SELECT * FROM samples WHERE {RESTATED}"))
        later = [{"at": to_sqlite_text(to_us(END + 5 * MINUTE))}]
        restate = f"UPDATE samples SET revision = 1, value = -value, received_at = :at WHERE {RESTATED}"
        connection.execute(text(restate), later)
    seconds = time.monotonic() - started
    print(f"{engine.dialect.name}: {minutes * tickers:,} samples in {seconds:,.0f} s", file=sys.stderr, flush=True)


def _minute(start: datetime, number: int) -> dict[str, Any]:
    at = start + number * MINUTE
    stamps = {"ts": at, "received_at": at + timedelta(seconds=62)}
    return {"seq": number + 1} | {name: to_sqlite_text(to_us(stamp)) for name, stamp in stamps.items()}


def _names(start: datetime, minutes: int, tickers: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    numbers = range(1, tickers + 1)
    feed = {"feed": "crowd-sentiment", "first_seen_at": start}
    endpoint = feed | {"path": "/real-time/crowd-sentiment", "method": "get"}
    instance = {"instance_id": 1, "spool_id": "loader", "started_at": start, "heartbeat_at": END, "position": minutes}
    yield "instances", [instance]
    ledger = [(number + 1, start + number * MINUTE) for number in range(minutes)]
    batch = {"instance_id": 1, "row_count": tickers, "new_rows": tickers, "frames": 1}
    yield (
        "batches",
        [batch | {"first_seq": n, "last_seq": n, "committed_at": t, "from_ts": t, "to_ts": t} for n, t in ledger],
    )
    yield "series", [feed | {"series_id": n, "metric": "crowd_sentiment", "ticker": f"T{n}"} for n in numbers]
    params = [(n, f"T{n}", f'{{"ticker":"T{n}"}}') for n in numbers]
    yield "subscriptions", [endpoint | {"subscription_id": n, "ticker": t, "params": p} for n, t, p in params]


def _coverage(start: datetime, tickers: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Everything is live except for a minute of each day, which is repaired for every other ticker."""
    coverage: list[dict[str, Any]] = []
    repairs: list[dict[str, Any]] = []
    at = start
    while at < END:
        end = at + DAY
        lost = end - MINUTE
        spans = [("live", at, lost), ("disconnected", lost, end - MINUTE / 2), ("pending", end - MINUTE / 2, end)]
        for state, from_at, to_at in [("live", at, None)] if end > END else spans:
            span = {"instance_id": 1, "start_seq": len(coverage), "started_at": from_at, "ended_at": to_at}
            coverage += [span | {"state": state, "subscription_id": n} for n in range(1, tickers + 1)]
        if end <= END:
            repair = {"kind": "window", "state": "done", "created_at": end, "from_ts": lost, "to_ts": end}
            repairs += [repair | {"subscription_id": n} for n in range(1, tickers + 1, 2)]
        at = end
    yield "coverage", coverage
    yield "repairs", repairs


def measure(url: str, rows: int, tickers: int) -> bool:
    """Fill the database if it is empty, print the durations, and return whether all goals were met."""
    engine = make_engine(normalize_database_url(url, Path.cwd()))
    migrate.upgrade(engine)
    with engine.connect() as connection:
        empty = connection.execute(text("SELECT NOT EXISTS (SELECT 1 FROM samples)")).scalar()
    if empty:
        fill(engine, rows, tickers)
    if engine.dialect.name == "postgresql":
        _vacuum(engine)
    lines, met = [], True
    for query in queries(engine, f"T{tickers // 2}", tickers):
        times, plan = _measure(engine, query), _plan(engine, query.sql)
        pages = _pages(plan)
        goals = (
            (query.goal_ms, times.median_ms, "ms"),
            (query.goal_pages, pages, "pages"),
            (query.goal_ratio, times.ratio, "×"),
        )
        met = met and all(goal is None or found is None or found <= goal for goal, found, _ in goals)
        goal_text = ", ".join(f"{goal:,.0f} {unit}" for goal, _, unit in goals if goal)
        read = "" if pages is None else f"{pages:,}"
        ratio = "" if times.ratio is None else f"{times.ratio:.1f} ×"
        cells = (query.name, f"{times.first_ms:,.1f} ms", f"{times.median_ms:,.1f} ms", read, ratio, goal_text)
        lines.append(f"| {' | '.join(cells)} |")
        print(f"{engine.dialect.name}: {query.sql}\n{plan}\n", flush=True)
    size = f"{rows:,} samples of {tickers:,} tickers"
    head = [f"| {engine.dialect.name}, {size} | first | then | pages | by hand | goal |", "|---|---|---|---|---|---|"]
    print("\n".join([*head, *lines]), end="\n\n", flush=True)
    engine.dispose()
    return met


def _vacuum(engine: Engine) -> None:
    """Do at once what autovacuum does some time later."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))


def _measure(engine: Engine, query: Query) -> Times:
    times_ms: list[float] = []
    by_hand_ms: list[float] = []
    with engine.connect() as connection:
        while len(times_ms) < ROUNDS and (not times_ms or times_ms[-1] < MAX_REPEATED_MS):
            times_ms.append(_time_ms(connection, query.sql))
            if query.by_hand:  # in turns, for other load on the machine slows down both
                by_hand_ms.append(_time_ms(connection, query.by_hand))
    median_ms = statistics.median(times_ms[1:] or times_ms)
    ratio = median_ms / statistics.median(by_hand_ms[1:] or by_hand_ms) if by_hand_ms else None
    return Times(times_ms[0], median_ms, ratio)


def _time_ms(connection: Connection, query: str) -> float:
    started = time.monotonic()
    connection.exec_driver_sql(query, execution_options=AS_IS).fetchall()
    return 1000 * (time.monotonic() - started)


def _plan(engine: Engine, query: str) -> str:
    explain = "EXPLAIN (ANALYZE, BUFFERS)" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with engine.connect() as connection:
        return "\n".join(
            str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {query}", execution_options=AS_IS)
        )


def _pages(plan: str) -> int | None:
    """Return how many pages of tables and indexes a plan of PostgreSQL has read, None for SQLite."""
    if not (line := re.search(r"Buffers: shared([^,\n]*)", plan)):
        return None
    return sum(int(count) for count in re.findall(r"(?:hit|read)=(\d+)", line[1]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.loader", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000_000, help="in PostgreSQL, or in the database of --url")
    parser.add_argument("--sqlite-rows", type=int, default=10_000_000, help="0 skips SQLite")
    parser.add_argument("--tickers", type=int, default=5_000)
    parser.add_argument("--url", help="use this database only")
    arguments = parser.parse_args()
    if arguments.url:
        return not measure(arguments.url, arguments.rows, arguments.tickers)
    binaries = find_binaries()
    if binaries is None:
        sys.exit("PostgreSQL: install it, or set INGESTOR_TEST_PG_BIN (folder)")
    with own_server(binaries) as server:
        met = measure(server.url(), arguments.rows, arguments.tickers)
    if arguments.sqlite_rows:
        with tempfile.TemporaryDirectory() as folder:
            measure(f"sqlite:///{folder}/ingestor.db", arguments.sqlite_rows, arguments.tickers)
    return not met


if __name__ == "__main__":
    sys.exit(main())
