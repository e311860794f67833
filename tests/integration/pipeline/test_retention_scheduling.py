"""Retention in the writer's thread: between the batches, and never in their way."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from sqlalchemy import Engine, text

from ingestor.config.model import RetentionConfig as Horizons
from ingestor.core.entries import Fact, Frame
from ingestor.errors import SpoolFailed
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from ingestor.store.maintenance.retention import Retention
from ingestor.store.read.audit import audit
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo
from tests.support.daemon import until
from tests.support.entries import T0, decoder, frame, row
from tests.support.flaky_commit import Unsteady

NOW_US = int(datetime.now(UTC).timestamp() * 1_000_000)
LONG_AGO_US = NOW_US - 30 * 86_400_000_000
LONG_AGO_ROW = {"ts": "2001-01-01T00:00:00.000Z", "ticker": "OLD", "average_sentiment": 0.5}


def _unexpected(failure: SpoolFailed) -> None:
    raise failure


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0.001)
    spool.start(_unexpected)
    yield spool
    await spool.close()


def writer(spool: Spool, engine: Engine, *, max_rows: int = 5000, **horizons: str) -> Writer:
    keep = Horizons.model_validate({"payloads": "forever", "journal": "forever"} | horizons)
    instance = InstanceInfo(spool_id=spool.spool_id, name="test", version="0", config_sha256="", started_us=NOW_US)
    policy = BatchPolicy(max_rows=max_rows, max_wait_seconds=0)
    return Writer(
        spool,
        BatchWriter(engine),
        decoder(),
        policy,
        instance,
        prepare=lambda: None,
        retention=Retention(engine, keep),
    )


@contextmanager
def running(made: Writer) -> Iterator[None]:
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield
    finally:
        made.stop()
        thread.join()


async def put(spool: Spool, *entries: Frame | Fact) -> None:
    for entry in entries:
        spool.append(entry)
    await spool.durable(spool.head)


def query(engine: Engine, sql: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(sql)).scalars())


async def test_what_is_old_is_taken_while_entries_come_and_are_written(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame([row(minute=i)], received_us=LONG_AGO_US) for i in range(300)))
    made = writer(spool, engine, max_rows=100, payloads="24h")
    with running(made):
        await until(lambda: made.status.position == 300)
        made.request_retention()
        for minute in range(300, 400):
            await put(spool, frame([row(minute=minute)], received_us=NOW_US))
        await until(lambda: made.status.position == 400)
        await until(lambda: query(engine, "SELECT min(seq) FROM payloads") == [301])
    assert len(query(engine, "SELECT seq FROM payloads")) == 100
    assert len(query(engine, "SELECT ts FROM samples")) == 400
    assert audit(engine) == []


async def test_a_writer_that_is_behind_writes_first(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame([row(minute=i)], received_us=LONG_AGO_US) for i in range(3)))
    made = writer(spool, engine, max_rows=2, payloads="24h")
    made._begin()
    made.request_retention()
    made.step()
    assert (made.status.position, query(engine, "SELECT seq FROM payloads ORDER BY 1")) == (2, [1, 2])
    while made._pruning.is_set():  # on a busy machine a step has time for less
        made.step()
    assert (made.status.position, query(engine, "SELECT seq FROM payloads")) == (3, [])


async def test_a_value_that_retention_took_is_not_taken_for_known(spool: Spool, engine: Engine) -> None:
    made = writer(spool, engine, samples="365d")
    with running(made):
        await put(spool, frame([LONG_AGO_ROW, row()]))
        await until(lambda: made.status.position == 1)
        made.request_retention()
        await until(lambda: query(engine, "SELECT seq FROM samples") == [1] and not made._pruning.is_set())
        await put(spool, frame([LONG_AGO_ROW]))
        await until(lambda: made.status.position == 2)
    assert query(engine, "SELECT seq FROM samples ORDER BY 1") == [1, 2]
    assert audit(engine, samples_pruned=True) == []


async def test_what_is_older_than_samples_are_kept_is_counted_each_time_it_comes_and_not_stored(
    spool: Spool, engine: Engine
) -> None:
    made = writer(spool, engine, samples="365d")
    made._database = BatchWriter(engine, 365 * 86_400.0)
    fresh = {"ts": datetime.now(UTC).isoformat(), "ticker": "NEW", "average_sentiment": 0.5}
    with running(made):
        await put(spool, frame([LONG_AGO_ROW, fresh]), frame([LONG_AGO_ROW, {"ticker": "bad"}]))
        await until(lambda: made.status.position == 2)
        await put(spool, frame([LONG_AGO_ROW, fresh]))
        await until(lambda: made.status.position == 3)
    status = made.status
    assert (status.new, status.duplicate, status.dead_at_decode, status.expired) == (1, 1, 1, 3)
    assert query(engine, "SELECT sum(expired_rows) FROM batches") == [3]
    assert query(engine, "SELECT ticker FROM observations") == query(engine, "SELECT ticker FROM series") == ["NEW"]
    assert audit(engine) == []


async def test_what_is_too_old_is_counted_each_time_it_came_also_if_the_database_goes_meanwhile(
    spool: Spool, engine: Engine
) -> None:
    made = writer(spool, engine, samples="365d")
    made._database = BatchWriter(engine, 365 * 86_400.0)
    made.drain()
    made._begin()
    fresh = {"ts": datetime.now(UTC).isoformat(), "ticker": "NEW", "average_sentiment": 0.5}
    await put(spool, frame([LONG_AGO_ROW, fresh]), frame([LONG_AGO_ROW]))
    Unsteady(engine).fail(4, done=False)  # after two looks at its clock, and the name of the series
    made.step()
    assert (made.status.new, made.status.duplicate, made.status.expired) == (1, 0, 2)


async def test_a_clock_of_ours_that_runs_ahead_makes_nothing_too_old(spool: Spool, engine: Engine) -> None:
    assembly = BatchBuilder(1, decoder())
    assembly.add((1, frame([{"ts": datetime.now(UTC).isoformat(), "ticker": "NEW", "average_sentiment": 0.5}])))
    database = BatchWriter(engine, 86_400.0)
    database.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=0), 1)
    with time_machine.travel(datetime.now(UTC) + timedelta(days=400)):
        written = database.write(assembly.batch)
    assert (written.new, written.expired) == (1, 0)


def test_a_batch_that_is_written_again_counts_what_is_too_old_once() -> None:
    assembly = BatchBuilder(1, decoder())
    assembly.add((1, frame([LONG_AGO_ROW, row()])))
    for _ in range(2):
        assembly.batch.expire(T0)
        assert (len(assembly.batch.rows), len(assembly.batch.expired), assembly.batch.row_count) == (1, 1, 2)


async def test_retention_that_fails_stops_nobody_and_works_once_it_can(
    spool: Spool, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    made = writer(spool, engine, payloads="24h")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE leases RENAME TO elsewhere"))
    with running(made):
        await put(spool, frame([row("A")], received_us=LONG_AGO_US))
        await until(lambda: made.status.position == 1)
        made.request_retention()
        await until(lambda: "could not be taken" in caplog.text)
        await put(spool, frame([row("B")], received_us=LONG_AGO_US))
        await until(lambda: made.status.position == 2)
        assert len(query(engine, "SELECT seq FROM payloads")) == 2
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO leases"))
        made.request_retention()
        await until(lambda: query(engine, "SELECT seq FROM payloads") == [])
    assert len([record for record in caplog.records if "could not be taken" in record.message]) == 1
