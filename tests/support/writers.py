"""Create writers on real spools and databases, and helpers for their tests."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, text

from ingestor.core.entries import Fact, Frame
from ingestor.errors import SpoolFailed
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.support.entries import T0, decoder


def make_writer(
    spool: Spool,
    engine: Engine,
    *,
    max_rows: int = 5000,
    max_wait_seconds: float = 0,
    keep_samples_seconds: float | None = None,
    drain: bool = True,
    name: str = "test",
    started_us: int = T0,
    **options: Any,
) -> Writer:
    """Return a writer that is not running, as if the spool had been opened just now.

    With ``drain`` it does not wait. ``options`` are passed to Writer.
    """
    spool.opened_head = spool.head
    instance = InstanceInfo(spool_id=spool.spool_id, name=name, version="0", config_sha256="", started_us=started_us)
    policy = BatchPolicy(max_rows=max_rows, max_wait_seconds=max_wait_seconds)
    database = BatchWriter(engine, keep_samples_seconds)
    writer = Writer(spool, database, decoder(), policy, instance, **{"prepare": lambda: None} | options)
    if drain:
        writer.drain()
    return writer


async def put(spool: Spool, *entries: Frame | Fact) -> None:
    """Append entries and wait until they are durable."""
    for entry in entries:
        spool.append(entry)
    await spool.durable(spool.head)


def query(engine: Engine, sql: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


def raise_failure(failure: SpoolFailed) -> None:
    """Raise the failure; passed to ``Spool.start``, because in most tests the spool must not fail."""
    raise failure
