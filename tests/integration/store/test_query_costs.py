"""The cost of a batch does not grow with the tables. Steps are counted, not timed."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import event

from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store import schema
from ingestor.store.engine import make_engine
from ingestor.store.write import revision_rows
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.interning import InternTable
from ingestor.store.write.registration import InstanceInfo
from tests.support.entries import T0, decoder, fact, frame, row
from tests.support.postgres_server import fresh_database

FILL = (  # series, with a sample and a revision each
    """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {0})
    INSERT INTO series SELECT i, 'crowd-sentiment', 'crowd_sentiment', 'OTHER' || i, '', '2026-01-01 00:00:00'
    FROM n
    """,
    """
    INSERT INTO {0} SELECT series_id, {1}, '2026-01-01 00:00:00', 0.25, '2026-01-01 00:00:00', NULL,
        series_id, 7, 1 FROM series
    """,
)


@pytest.mark.parametrize("statistics", [False, True], ids=["without statistics", "with statistics"])
def test_batch_cost_does_not_grow_with_the_database(tmp_path: Path, sqlite_template: Path, statistics: bool) -> None:
    small, large = (count_steps(tmp_path / f"{rows}.db", sqlite_template, rows, statistics) for rows in (100, 20_000))
    assert large < 1.5 * small


def count_steps(path: Path, template: Path, rows: int, statistics: bool) -> int:
    """Count SQLite's virtual machine steps for a batch of every kind of row, into tables of so many rows."""
    with sqlite3.connect(shutil.copy(template, path)) as raw:
        raw.execute(FILL[0].format(rows))
        raw.execute(FILL[1].format("samples", 1))
        raw.execute(FILL[1].format("sample_revisions", 0))
        if statistics:
            raw.execute("ANALYZE")
    raw.close()
    engine = make_engine(f"sqlite:///{path}")
    steps: list[None] = []
    event.listen(engine, "connect", lambda c, _: c.set_progress_handler(lambda: steps.append(None), 1))
    batch_writer = BatchWriter(engine)
    batch_writer.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0))
    steps.clear()
    builder = BatchBuilder(1, decoder())
    builder.add((1, fact(state="live", tickers=["OTHER1", "OTHER2"])))
    existing = [row(f"OTHER{number}", value=0.25 if number % 2 else 0.75) for number in range(1, 21)]
    builder.add((2, frame([*existing, *(row(f"NEW{number}") for number in range(20)), {"ticker": "bad"}])))
    written = batch_writer.write(builder.batch)
    batch_writer.publish_heartbeat(T0)
    engine.dispose()
    assert (written.new, written.revised, written.duplicate, written.dead_rows) == (20, 10, 10, 1)
    return len(steps)


@pytest.mark.postgres
def test_postgresql_key_lookup_reads_only_its_rows(postgres_server_url: str, postgres_template_url: str) -> None:
    with fresh_database(postgres_server_url, postgres_template_url) as url:
        engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO series (feed, metric, ticker, first_seen_at)"
                " SELECT 'f', 'm', 'T' || i, now() FROM generate_series(1, 20000) i"
            )
            connection.exec_driver_sql(
                "INSERT INTO samples (series_id, ts, value, received_at, seq, instance_id, source)"
                " SELECT i, '2026-01-01Z', 1, now(), i, 1, 1 FROM generate_series(1, 20000) i"
            )
        names: InternTable[tuple[str, ...]] = InternTable(schema.series, ("feed", "metric", "ticker", "user_id"), 1000)
        with engine.begin() as connection:
            assert len(names._select(connection, [("f", "m", f"T{number}", "") for number in range(1, 21)])) == 20
            assert len(revision_rows.load(connection, [(number, T0) for number in range(1, 21)])) == 20
            rows_read = (
                "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
                " WHERE relname IN ('series', 'samples')"
            )
            assert connection.exec_driver_sql(rows_read).scalar_one() == 40
        engine.dispose()
