"""Retention in the writer's thread: between batches, and never before one that is due."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import Engine, text

from ingestor.config.model import RetentionConfig
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store.maintenance.retention import Retention
from ingestor.store.read.audit import audit
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.support.daemon import until
from tests.support.entries import T0, decoder, fact, frame, row
from tests.support.flaky_commit import FlakyCommits
from tests.support.writers import make_writer, put, query

NOW_US = int(datetime.now(UTC).timestamp() * 1_000_000)
LONG_AGO_US = NOW_US - 30 * 86_400_000_000
YEAR_SECONDS = 365 * 86_400.0
LONG_AGO_ROW = {"ts": "2001-01-01T00:00:00.000Z", "ticker": "OLD", "average_sentiment": 0.5}


def retaining_writer(
    spool: Spool,
    engine: Engine,
    *,
    max_rows: int = 5000,
    keep_samples_seconds: float | None = None,
    drain: bool = False,
    proven: bool = True,
    **keep: str,
) -> Writer:
    """A writer with retention, which (``proven``) has seen a live row. ``keep``: as in the config, default forever."""
    config = RetentionConfig.model_validate({"payloads": "forever", "journal": "forever"} | keep)
    writer = make_writer(
        spool,
        engine,
        max_rows=max_rows,
        keep_samples_seconds=keep_samples_seconds,
        drain=drain,
        retention=Retention(engine, config),
    )
    if proven:
        writer._database.proven_time.note(NOW_US)
    return writer


def column(engine: Engine, sql: str) -> list[Any]:
    return [value for (value,) in query(engine, sql)]


@contextmanager
def running(writer: Writer) -> Iterator[None]:
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield
    finally:
        writer.stop()
        thread.join()


async def test_retention_runs_while_entries_are_written(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame([row(minute=i)], received_us=LONG_AGO_US) for i in range(300)))
    writer = retaining_writer(spool, engine, max_rows=100, payloads="24h")
    with running(writer):
        await until(lambda: writer.status.position == 300)
        writer.request_retention()
        for minute in range(300, 400):
            await put(spool, frame([row(minute=minute)], received_us=NOW_US))
        await until(lambda: writer.status.position == 400)
        await until(lambda: column(engine, "SELECT min(seq) FROM payloads") == [301])
    assert len(column(engine, "SELECT seq FROM payloads")) == 100
    assert len(column(engine, "SELECT ts FROM samples")) == 400
    assert audit(engine) == []


async def test_retention_waits_while_the_writer_is_behind(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame([row(minute=i)], received_us=LONG_AGO_US) for i in range(3)))
    writer = retaining_writer(spool, engine, max_rows=2, payloads="24h")
    writer.register()
    writer.request_retention()
    writer.step()
    assert (writer.status.position, column(engine, "SELECT seq FROM payloads ORDER BY 1")) == (2, [1, 2])
    while writer.retention_pending:  # on a busy machine a step deletes less
        writer.step()
    assert (writer.status.position, column(engine, "SELECT seq FROM payloads")) == (3, [])


async def test_dedup_forgets_values_deleted_by_retention(spool: Spool, engine: Engine) -> None:
    writer = retaining_writer(spool, engine, samples="365d")
    with running(writer):
        await put(spool, frame([LONG_AGO_ROW, row()]))
        await until(lambda: writer.status.position == 1)
        writer.request_retention()
        await until(lambda: column(engine, "SELECT seq FROM samples") == [1] and not writer.retention_pending)
        await put(spool, frame([LONG_AGO_ROW]))
        await until(lambda: writer.status.position == 2)
    assert column(engine, "SELECT seq FROM samples ORDER BY 1") == [1, 2]
    assert audit(engine, samples_pruned=True) == []


async def test_expired_row_is_counted_each_time_and_not_stored(spool: Spool, engine: Engine) -> None:
    writer = retaining_writer(spool, engine, samples="365d", keep_samples_seconds=YEAR_SECONDS)
    fresh = {"ts": datetime.now(UTC).isoformat(), "ticker": "NEW", "average_sentiment": 0.5}
    with running(writer):
        await put(spool, frame([LONG_AGO_ROW, fresh]), frame([LONG_AGO_ROW, {"ticker": "bad"}]))
        await until(lambda: writer.status.position == 2)
        await put(spool, frame([LONG_AGO_ROW, fresh]))
        await until(lambda: writer.status.position == 3)
    status = writer.status
    assert (status.new, status.duplicate, status.dead_at_decode, status.expired) == (1, 1, 1, 3)
    assert column(engine, "SELECT sum(expired_rows) FROM batches") == [3]
    assert column(engine, "SELECT ticker FROM observations") == column(engine, "SELECT ticker FROM series") == ["NEW"]
    assert audit(engine) == []


async def test_expired_row_is_counted_once_when_the_write_is_retried(spool: Spool, engine: Engine) -> None:
    writer = retaining_writer(spool, engine, samples="365d", keep_samples_seconds=YEAR_SECONDS, drain=True)
    writer.register()
    fresh = {"ts": datetime.now(UTC).isoformat(), "ticker": "NEW", "average_sentiment": 0.5}
    await put(spool, frame([LONG_AGO_ROW, fresh]), frame([LONG_AGO_ROW]))
    FlakyCommits(engine).fail(4, done=False)  # commits 1 to 3: twice the database's clock, and the series
    writer.step()  # after the failure, it only registers
    writer.step()
    assert (writer.status.new, writer.status.duplicate, writer.status.expired) == (1, 0, 2)


async def test_local_clock_that_runs_ahead_expires_nothing(spool: Spool, engine: Engine) -> None:
    builder = BatchBuilder(1, decoder())
    builder.add((1, frame([{"ts": datetime.now(UTC).isoformat(), "ticker": "NEW", "average_sentiment": 0.5}])))
    database = BatchWriter(engine, 86_400.0)
    database.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=0))
    with time_machine.travel(datetime.now(UTC) + timedelta(days=400)):
        written = database.write(builder.batch)
    assert (written.new, written.expired) == (1, 0)


async def test_live_rows_are_stored_while_both_clocks_run_ahead(spool: Spool, engine: Engine) -> None:
    """For both clocks, live rows are 400 days old."""
    writer = retaining_writer(spool, engine, keep_samples_seconds=86_400.0, drain=True, proven=False)
    writer.register()
    live = datetime.now(UTC) - timedelta(days=400)
    rows = [{"ts": (live + timedelta(minutes=i)).isoformat(), "ticker": "A", "average_sentiment": 0} for i in range(3)]
    before = {"ts": (live - timedelta(days=3)).isoformat(), "ticker": "B", "average_sentiment": 0}
    await put(spool, frame(rows[:1]), frame([before, *rows[1:]]))
    writer.step()
    assert (writer.status.new, writer.status.expired) == (3, 1)


async def test_retention_waits_for_proof_of_the_time(
    spool: Spool, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """For both clocks, everything is 30 days old. Without live rows that may be so, or they run ahead."""
    caplog.set_level("INFO")
    live = datetime.fromtimestamp(LONG_AGO_US / 1_000_000, UTC).isoformat()
    writer = retaining_writer(spool, engine, payloads="24h", journal="2d", samples="2d", proven=False)
    writer.register()
    for entries in ([fact()], [frame([{"ts": live, "ticker": "A", "average_sentiment": 0}], received_us=LONG_AGO_US)]):
        await put(spool, *entries)
        for _ in range(2):
            writer.request_retention()
            while writer.retention_pending:
                writer.step()
    assert column(engine, "SELECT seq FROM payloads") == column(engine, "SELECT seq FROM samples") == [2]
    assert len([record for record in caplog.records if "retention waits" in record.message]) == 1
    later = {"ts": datetime.now(UTC).isoformat(), "ticker": "A", "average_sentiment": 0}
    await put(spool, frame([later], received_us=NOW_US))
    writer.request_retention()
    while writer.retention_pending:
        writer.step()
    assert column(engine, "SELECT seq FROM payloads") == column(engine, "SELECT seq FROM samples") == [3]


def test_expiring_a_batch_twice_counts_its_rows_once() -> None:
    builder = BatchBuilder(1, decoder())
    builder.add((1, frame([LONG_AGO_ROW, row()])))
    for _ in range(2):
        builder.batch.expire(T0)
        assert (len(builder.batch.rows), len(builder.batch.expired), builder.batch.row_count) == (1, 1, 2)


async def test_failed_retention_step_is_logged_and_retried_later(
    spool: Spool, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    writer = retaining_writer(spool, engine, payloads="24h")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE leases RENAME TO elsewhere"))
    with running(writer):
        await put(spool, frame([row("A")], received_us=LONG_AGO_US))
        await until(lambda: writer.status.position == 1)
        writer.request_retention()
        await until(lambda: "retention step failed" in caplog.text)
        await put(spool, frame([row("B")], received_us=LONG_AGO_US))
        await until(lambda: writer.status.position == 2)
        assert len(column(engine, "SELECT seq FROM payloads")) == 2
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO leases"))
        writer.request_retention()
        await until(lambda: column(engine, "SELECT seq FROM payloads") == [])
    assert len([record for record in caplog.records if "retention step failed" in record.message]) == 1
