"""What a batch costs does not grow with what the tables hold. Counted in steps of SQLite's machine, not in time."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import event

from ingestor.pipeline.assemble import Assembly
from ingestor.store.database import Database, Instance
from ingestor.store.engine import connect
from tests.support.entries import T0, decoder, fact, frame, row

FILL = (  # series, and of each a sample and a revision
    """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {0})
    INSERT INTO series SELECT i, 'crowd-sentiment', 'crowd_sentiment', 'OTHER' || i, '', '2026-01-01 00:00:00.000000'
    FROM n
    """,
    """
    INSERT INTO {0} SELECT series_id, {1}, '2026-01-01 00:00:00.000000', 0.25, '2026-01-01 00:00:00.000000', NULL,
        series_id, 7, 'stream' FROM series
    """,
)


@pytest.mark.parametrize("statistics", [False, True], ids=["", "with statistics"])
def test_a_batch_costs_as_much_in_a_large_database_as_in_a_small_one(
    tmp_path: Path, sqlite_template: Path, statistics: bool
) -> None:
    small, large = (steps(tmp_path / f"{rows}.db", sqlite_template, rows, statistics) for rows in (100, 20_000))
    assert large < 1.5 * small


def steps(path: Path, template: Path, rows: int, statistics: bool) -> int:
    """Of a batch with everything in it, into tables of so many rows."""
    with sqlite3.connect(shutil.copy(template, path)) as raw:
        raw.execute(FILL[0].format(rows))
        raw.execute(FILL[1].format("samples", 1))
        raw.execute(FILL[1].format("sample_revisions", 0))
        if statistics:
            raw.execute("ANALYZE")
    raw.close()
    engine = connect(f"sqlite:///{path}")
    counted: list[None] = []
    event.listen(engine, "connect", lambda c, _: c.set_progress_handler(lambda: counted.append(None), 1))
    database = Database(engine)
    database.register(Instance(spool_id="s", name="", version="", config_sha256="", started_us=T0), 1)
    counted.clear()
    assembly = Assembly(1, decoder())
    assembly.add((1, fact(state="live", tickers=["OTHER1", "OTHER2"])))
    known = [row(f"OTHER{number}", value=0.25 if number % 2 else 0.75) for number in range(1, 21)]
    assembly.add((2, frame([*known, *(row(f"NEW{number}") for number in range(20)), {"ticker": "bad"}])))
    written = database.write(assembly.batch)
    database.heartbeat(T0)
    engine.dispose()
    assert (written.new, written.revised, written.duplicate, written.dead_rows) == (20, 10, 10, 1)
    return len(counted)
