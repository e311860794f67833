"""A database that is another one than before: restored, promoted, deleted. Nothing learnt of the first one is used."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import structs
from sqlalchemy import Engine, update

from ingestor.core.entries import Frame
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.spool.spool import Spool
from ingestor.store import migrate, schema
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import audit, find_losses
from tests.support.daemon import until
from tests.support.database_copy import database_with_copy
from tests.support.entries import T0, decoder, fact, frame, row
from tests.support.flaky_commit import FlakyCommits
from tests.support.writers import make_writer, put, query, raise_failure

SECOND = 1_000_000


def letters(prefix: str, number: int) -> Frame:
    return frame([row(f"{prefix}{index:02}", value=index) for index in range(number)])


@pytest.mark.parametrize("noticed", [True, False], ids=["by an error", "by nothing"])
async def test_ids_of_a_database_are_not_used_in_a_copy_of_it(
    tmp_path: Path, spool: Spool, engine: Engine, server_url: str, noticed: bool
) -> None:
    """The names of a batch were interned, the batch is not committed, and a copy from before both takes over."""
    writer = make_writer(spool, engine)
    writer.register()
    await put(spool, letters("A", 2))
    writer.step()
    with database_with_copy(engine, tmp_path, server_url) as (copy, switch):
        other_spool = Spool(tmp_path / "other", max_bytes=1 << 30, sync_every_seconds=0.001)
        other_spool.start(raise_failure)
        await put(other_spool, letters("C", 20))  # its ids in the copy are those of others in the first
        make_writer(other_spool, copy).run()
        await other_spool.close()
        builder = BatchBuilder(spool.head + 1, decoder())
        builder.add((spool.head + 1, letters("B", 20)))
        await put(spool, letters("B", 20))
        if noticed:
            FlakyCommits(engine).fail(2, done=False)  # after that of the names
            writer.step()
        else:
            writer.register()
            writer._database._intern_series(builder.batch)
        switch()
        if not noticed and server_url:
            engine.dispose()
        while not writer.drained:
            writer.step()
        found = dict(query(engine, "SELECT ticker, value FROM observations"))
        expected = {f"{prefix}{index:02}": float(index) for prefix in "BC" for index in range(20)}
        assert found == expected | {"A00": 0.0, "A01": 1.0}
        assert audit(engine) == []


async def test_heartbeat_is_not_published_in_a_copy_that_lacks_entries(
    tmp_path: Path, spool: Spool, engine: Engine, server_url: str
) -> None:
    lost: list[str] = []
    writer = make_writer(spool, engine, on_lost=lambda reason, _since_us: lost.append(reason))
    writer.register()
    await put(spool, fact("subscribed", at_us=T0, state="live", tickers=["A"]), letters("A", 1))
    spool.heartbeat(T0 + SECOND)
    await put(spool, fact())
    writer.step()
    writer.step()
    with database_with_copy(engine, tmp_path, server_url) as (_, switch):
        await put(spool, letters("B", 1))
        writer.step()
        await put(spool, fact())  # this sync deletes what was acknowledged
        writer.step()
        switch()
        if server_url:
            engine.dispose()
        spool.heartbeat(T0 + 2 * SECOND)
        await until(lambda: spool.durable_heartbeat and spool.durable_heartbeat.at_us == T0 + 2 * SECOND)
        writer.step()  # with nothing to write
        assert lost == ["the database's position 3 does not fit the spool: one of them is an older copy"]
        ((heartbeat_at,),) = query(engine, "SELECT heartbeat_at FROM instances WHERE instance_id = 1")
        assert "00:00:01" in str(heartbeat_at)
        (loss,) = [issue.message for issue in find_losses(engine) if issue.check == "lost"]
        assert "received from 2026-01-01 00:00:01 to" in loss
        assert audit(engine) == []


async def test_heartbeat_is_not_published_at_another_position(spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    await put(spool, letters("A", 1))
    writer.step()
    with engine.begin() as connection:
        connection.execute(update(schema.instances).values(position=0, heartbeat_at=None))
    spool.heartbeat(T0 + SECOND)
    await until(lambda: spool.durable_heartbeat)
    writer.step()
    assert query(engine, "SELECT count(heartbeat_at) FROM instances WHERE instance_id = 1") == [(0,)]


async def test_connections_are_published_with_the_heartbeat(spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    table = "SELECT instance_id, path, params FROM connections ORDER BY heard_at"
    for number, groups in enumerate((["/a", "/b"], ["/b"], ["/b"], []), 1):
        spool.heartbeat(T0 + number * SECOND, {(path, "{}"): T0 + index for index, path in enumerate(groups)})
        await put(spool, fact())
        writer.step()
        assert query(engine, table) == [(1, path, "{}") for path in groups]


@pytest.mark.parametrize("change", ["deleted", "replaced by a new one", "replaced by an older one"])
async def test_sqlite_file_that_is_gone_while_it_is_written_to_is_a_loss(
    tmp_path: Path, spool: Spool, sqlite_template: Path, change: str
) -> None:
    path, older = tmp_path / "ingestor.db", tmp_path / "older.db"
    shutil.copy(sqlite_template, path)
    engine = make_engine(f"sqlite:///{path}")
    lost: list[tuple[str, int | None]] = []
    writer = make_writer(
        spool, engine, prepare=lambda: migrate.upgrade(engine), on_lost=lambda *loss: lost.append(loss)
    )
    writer.register()
    await put(spool, letters("A", 1))
    writer.step()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"VACUUM INTO '{older}'")
    spool.heartbeat(T0 + SECOND)
    await put(spool, letters("B", 1))
    writer.step()
    await put(spool, structs.replace(letters("C", 1), received_us=T0 + 2 * SECOND))  # deletes what was acknowledged
    path.unlink()
    if change != "deleted":
        shutil.copy(sqlite_template if change == "replaced by a new one" else older, path)
    while not writer.drained:
        writer.step()
    ((reason, since_us),) = lost
    if change == "replaced by an older one":
        assert (since_us, "position 1 does not fit" in reason) == (None, True)
    else:
        assert (since_us, "does not know this spool" in reason) == (T0 + SECOND, True)
    assert query(engine, "SELECT ticker FROM observations WHERE ticker LIKE 'C%'") == [("C00",)]
    assert spool.acked == spool.head
    assert audit(engine) == []
    engine.dispose()
