"""Measure exports: ``python -m tests.tools.export_speed --rows 1000000``.

Fills a temporary PostgreSQL and a SQLite file with random values of 500 tickers, received up to two seconds after each
minute. Prints the processor time of client and server for each row, as medians, interleaved: of exports, of psql's
``\\copy`` to CSV, and of Parquet by hand (COPY's CSV through pyarrow, rows through polars). Also the bytes of a row.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import polars
import psycopg
from pyarrow import csv, parquet
from sqlalchemy import text

import ingestor
from ingestor.config.urls import normalize_database_url
from ingestor.store import migrate
from ingestor.store.engine import Engine, make_engine, repeatable_read
from ingestor.store.read.export import COLUMNS, ExportQuery, read_pages
from ingestor.store.read.export_formats import CsvWriter, ExportWriter, JsonLinesWriter, ParquetWriter

from ..support.postgres_server import find_binaries, own_server

FEED = "crowd-sentiment"
TICKERS = 500
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SELECT = f"SELECT {', '.join(COLUMNS)} FROM observations WHERE feed = '{FEED}'"

SERIES = """
INSERT INTO series (series_id, feed, metric, ticker, user_id, first_seen_at)
VALUES (:number, 'crowd-sentiment', 'crowd_sentiment', :ticker, '', '2026-10-01 00:00:00')
"""
SAMPLES = {
    "postgresql": """
        INSERT INTO samples (series_id, ts, value, received_at, seq, instance_id, source)
        SELECT n, at, random() * 2 - 1, at + random() * interval '2 seconds', m * :tickers + n, 1, 1
        FROM generate_series(0, :minutes - 1) m, generate_series(1, :tickers) n,
            LATERAL (SELECT timestamptz '2026-10-01Z' + m * interval '1 minute' AS at) t
        """,
    "sqlite": """
        WITH RECURSIVE minutes (m) AS (SELECT 0 UNION ALL SELECT m + 1 FROM minutes WHERE m < :minutes - 1)
        INSERT INTO samples (series_id, ts, value, received_at, seq, instance_id, source)
        SELECT s.series_id, datetime('2026-10-01', m || ' minutes'), random() / 9223372036854775808.0,
            datetime('2026-10-01', m || ' minutes') || '.' || (100001 + abs(random()) % 899998),
            m * :tickers + s.series_id, 1, 1
        FROM minutes CROSS JOIN series s
        """,
}


def fill(engine: Engine, minutes: int) -> None:
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text(SERIES), [{"number": n, "ticker": f"T{n:03}"} for n in range(1, TICKERS + 1)])
        connection.execute(text(SAMPLES[engine.dialect.name]), {"minutes": minutes, "tickers": TICKERS})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("VACUUM ANALYZE"))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def psql_copy(url: str, file: Path, order: str = "") -> float:
    """Return the processor time of ``\\copy``, psql's and the server's."""
    with subprocess.Popen(
        ["psql", url, "-qAt", "-v", "ON_ERROR_STOP=1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as psql:
        assert psql.stdin
        assert psql.stdout

        def ask(command: str) -> str:
            print(f"{command}\nSELECT pg_backend_pid();", file=psql.stdin, flush=True)
            return psql.stdout.readline() if psql.stdout else ""

        pids = (psql.pid, int(ask("SET jit = off; SET timezone = 'UTC';")))
        before = sum(map(cpu_seconds, pids))
        ask(f"\\copy ({SELECT} {order}) TO '{file}' (FORMAT csv, HEADER)")
        return sum(map(cpu_seconds, pids)) - before


def by_hand(url: str, file: Path, write: Callable[[psycopg.Connection, Path], None]) -> float:
    with psycopg.connect(url) as connection:
        connection.execute("SET timezone = 'UTC'")
        server = connection.info.backend_pid
        before = cpu_seconds(server) + time.process_time()
        write(connection, file)
        return cpu_seconds(server) + time.process_time() - before


def with_pyarrow(connection: psycopg.Connection, file: Path) -> None:
    data = bytearray()
    with connection.cursor().copy(f"COPY ({SELECT}) TO STDOUT (FORMAT csv, HEADER)") as copy:
        for row in copy:
            data += row
    parquet.write_table(csv.read_csv(BytesIO(data)), file)


def with_polars(connection: psycopg.Connection, file: Path) -> None:
    polars.read_database(SELECT, connection, infer_schema_length=None).write_parquet(file)


def export(engine: Engine, file: Path, make_writer: Callable[[BytesIO], ExportWriter]) -> float:
    is_postgres = engine.dialect.name == "postgresql"
    with repeatable_read(engine) as connection, file.open("wb") as target:
        server = connection.execute(text("SELECT pg_backend_pid()")).scalar_one() if is_postgres else os.getpid()
        before = cpu_seconds(server) * is_postgres + time.process_time()
        writer = make_writer(target)  # type: ignore[arg-type]
        for _, page in read_pages(connection, ExportQuery(feeds=(FEED,))):
            writer.write(page)
        writer.close()
        return cpu_seconds(server) * is_postgres + time.process_time() - before


def read(url: str) -> float:
    before = time.process_time()
    ingestor.read(url, FEED)
    return time.process_time() - before


def measure(cases: dict[str, Callable[[], float]], rows: int, rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            times[name].append(run())
    for name, seconds in times.items():
        print(f"| {name} | {statistics.median(seconds) / rows * 1e6:.2f} µs |", flush=True)


def exports_of(engine: Engine, folder: Path) -> dict[str, Callable[[], float]]:
    database = engine.dialect.name
    return {
        f"{database}: export to CSV": lambda: export(engine, folder / "x.csv", CsvWriter),
        f"{database}: export to JSON lines": lambda: export(engine, folder / "x.jsonl", JsonLinesWriter),
        f"{database}: export to Parquet": lambda: export(engine, folder / "x.parquet", ParquetWriter),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.export_speed")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    binaries = find_binaries()
    if binaries is None or not shutil.which("psql"):
        sys.exit("PostgreSQL and psql: install them, or set INGESTOR_TEST_PG_BIN (folder)")
    minutes = arguments.rows // TICKERS
    rows = minutes * TICKERS
    with own_server(binaries) as server, tempfile.TemporaryDirectory() as name:
        folder, url = Path(name), server.url()
        engine = make_engine(normalize_database_url(url, folder))
        fill(engine, minutes)
        order = "ORDER BY metric, ticker, user_id, ts"
        print(f"| {rows:,} rows | processor time a row |\n|---|---|")
        measure(
            {
                "psql's \\copy to CSV": lambda: psql_copy(url, folder / "p.csv"),
                "psql's \\copy to CSV, in the order of the export": lambda: psql_copy(url, folder / "p.csv", order),
                "to Parquet by hand: COPY's CSV, pyarrow": lambda: by_hand(url, folder / "p.parquet", with_pyarrow),
                "to Parquet by hand: rows, polars": lambda: by_hand(url, folder / "p.parquet", with_polars),
                **exports_of(engine, folder),
                "postgresql: ingestor.read, without the server": lambda: read(url),
            },
            rows,
            arguments.rounds,
        )
        print(f"\nParquet: {(folder / 'x.parquet').stat().st_size / rows:.2f} bytes a row\n")
        engine.dispose()
        file = make_engine(normalize_database_url(f"sqlite:///{folder}/ingestor.db", folder))
        fill(file, minutes)
        measure(exports_of(file, folder), rows, arguments.rounds)
        file.dispose()


if __name__ == "__main__":
    main()
