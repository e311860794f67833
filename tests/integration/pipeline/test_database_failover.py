"""A PostgreSQL that fails over: what the spool may forget, and which server the writer goes on with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store import migrate, transaction_watchdog
from ingestor.store.engine import make_engine, postgres_hosts
from tests.support.daemon import until
from tests.support.entries import frame
from tests.support.postgres_cluster import PostgresCluster
from tests.support.writers import make_writer, put

pytestmark = pytest.mark.postgres

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@asynccontextmanager
async def writing(spool: Spool, url: str) -> AsyncIterator[Writer]:
    """Run a writer over several hosts, as the daemon does."""
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"), known_server=lambda: spool.server)
    writer = make_writer(spool, engine, drain=False, prepare=lambda: migrate.upgrade(engine))
    hosts = postgres_hosts(engine)
    assert hosts is not None
    hosts.on_slow_commit = writer.note_slow_commit
    running = asyncio.create_task(asyncio.to_thread(writer.run))
    try:
        yield writer
    finally:
        writer.stop()
        await running
        engine.dispose()


async def test_nothing_is_acknowledged_before_the_synchronous_standby_has_it(
    spool: Spool, postgres_cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_watchdog, "SLOW_COMMIT_SECONDS", 0.3)
    primary, standby = postgres_cluster.primary, postgres_cluster.standby
    async with writing(spool, postgres_cluster.url()) as writer:
        await put(spool, frame([]))
        await until(lambda: spool.acked == 1)
        postgres_cluster.make_synchronous()
        postgres_cluster.cut()
        await put(spool, frame([]), frame([]))

        for _ in range(3):  # the wait of the batch, then those of the registrations that must prove it
            await until(lambda: primary.execute(WAITING))
            primary.execute(CANCEL)
            await until(lambda: not writer.status.database_up and "ended with a warning" in str(writer.status.error))
        assert primary.execute("SELECT position FROM instances") == [(3,)]
        await until(lambda: "waits for a synchronous standby" in str(writer.status.error))
        assert not writer.status.database_up

        primary.kill_family()
        primary.start()  # shows what was waiting, replicated or not
        assert primary.execute("SELECT position FROM instances") == [(3,)]
        await until(lambda: primary.execute(WAITING))
        assert spool.acked == 1

        postgres_cluster.restore_flow()
        await until(lambda: spool.acked == 3)
        assert standby.execute("SELECT position FROM instances") == [(3,)]
        await until(lambda: writer.status.database_up and not writer.status.error)


async def test_writer_follows_the_promoted_standby_and_refuses_the_old_primary(
    spool: Spool, postgres_cluster: PostgresCluster
) -> None:
    old, new = postgres_cluster.primary, postgres_cluster.standby
    async with writing(spool, postgres_cluster.url()) as writer:
        await put(spool, frame([]))
        await until(lambda: spool.acked == 1)
        postgres_cluster.wait_for_standby()
        assert writer.status.server == f"127.0.0.1:{old.port}"
        postgres_cluster.kill_primary()
        postgres_cluster.promote()
        await put(spool, frame([]))
        await until(lambda: spool.acked == 2)
        assert writer.status.server == f"127.0.0.1:{new.port}"
        assert spool.server is not None
        assert spool.server[1] == 2
    old.start()  # accepts writes, and comes first in the URL
    async with writing(spool, postgres_cluster.url()) as writer:
        await put(spool, frame([]))
        await until(lambda: spool.acked == 3)
        assert writer.status.server == f"127.0.0.1:{new.port}"
    async with writing(spool, old.url()) as writer:
        await until(lambda: "is a primary that was replaced" in str(writer.status.error))
        assert spool.acked == 3
