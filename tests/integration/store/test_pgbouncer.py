"""PgBouncer in front of PostgreSQL: session mode works, whatever fails, and the other modes are refused by name."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Engine, text

from ingestor.errors import DatabaseUnavailable, DatabaseUnsupported
from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store import migrate, transaction_watchdog
from ingestor.store.engine import fetch_all, make_engine
from ingestor.store.read.audit import audit
from tests.integration.conftest import Command
from tests.support.daemon import until
from tests.support.entries import frame, row
from tests.support.pgbouncer import pgbouncer_for
from tests.support.postgres_cluster import PostgresCluster
from tests.support.postgres_server import Postgres
from tests.support.writers import make_writer, put, query, raise_failure

pytestmark = pytest.mark.postgres


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0.001)
    spool.start(raise_failure)
    yield spool
    await spool.close()


async def store(spool: Spool, writer: Writer, ticker: str) -> None:
    """Receive a row, and write until it is stored, however often that fails."""
    await put(spool, frame([row(ticker)]))
    await asyncio.to_thread(write_all, writer)


def write_all(writer: Writer) -> None:
    while not writer.drained:
        writer.step()


@asynccontextmanager
async def failing(spool: Spool, writer: Writer, ticker: str) -> AsyncIterator[None]:
    """Receive a row that cannot be stored, run the block once that has failed, and wait until the row is stored."""
    writing = asyncio.create_task(store(spool, writer, ticker))
    await until(lambda: writer.status.error or writing.done())
    assert "server" in str(writer.status.error)
    assert spool.acked < spool.head
    yield
    await writing


def stored_tickers(engine: Engine) -> set[str]:
    return {ticker for (ticker,) in query(engine, "SELECT ticker FROM observations")}


# -- session mode


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_writer_goes_on_after_a_restart_of_the_pooler(
    postgres_url: str, spool: Spool, end: signal.Signals
) -> None:
    with pgbouncer_for(postgres_url) as pooler, opened(pooler.url) as engine:
        migrate.upgrade(engine)
        writer = make_writer(spool, engine)
        writer.register()
        await store(spool, writer, "A")
        pooler.stop(end)
        async with failing(spool, writer, "B"):
            pooler.start()
        await store(spool, writer, "C")
        assert stored_tickers(engine) == {"A", "B", "C"}
        assert audit(engine) == []


@pytest.mark.parametrize("reset_query", ["DISCARD ALL", ""], ids=["reset", "not reset"])
async def test_session_that_another_client_has_used_is_as_good_as_a_new_one(
    postgres_url: str, spool: Spool, reset_query: str
) -> None:
    with pgbouncer_for(postgres_url, server_reset_query=reset_query) as pooler:
        with psycopg.connect(pooler.url, autocommit=True) as other:
            other.execute("SET extra_float_digits = -3")
            other.execute("SET \"TimeZone\" = 'America/St_Johns'")
            other.execute('PREPARE "_pg3_0" AS SELECT 1')  # as psycopg names them
            backend_pid = other.execute("SELECT pg_backend_pid()").fetchone()
        with opened(pooler.url) as engine:
            migrate.upgrade(engine)
            writer = make_writer(spool, engine)
            writer.register()
            for number in range(8):  # a statement is prepared when it has been executed five times
                await put(spool, frame([row("A", value=0.1 + number)]))
                writer.step()
                assert writer.status.error is None
            assert backend_pid in query(engine, "SELECT pid FROM pg_stat_activity")
            assert query(engine, "SELECT current_setting('extra_float_digits')") == [("3",)]
            assert audit(engine) == []


async def test_copy_of_the_database_behind_the_pooler_is_noticed(postgres: Postgres, spool: Spool) -> None:
    lost: list[str] = []
    with pgbouncer_for(postgres.url()) as pooler, opened(pooler.url) as engine:
        migrate.upgrade(engine)
        writer = make_writer(spool, engine, on_lost=lambda reason, _since_us: lost.append(reason))
        writer.register()
        await store(spool, writer, "A")
        backup = postgres.backup()
        await store(spool, writer, "B")
        await store(spool, writer, "C")
        postgres.kill()
        postgres.restore(backup)
        await store(spool, writer, "D")
        assert [reason.partition(":")[0] for reason in lost] == ["the database's position 1 does not fit the spool"]
        assert stored_tickers(engine) == {"A", "D"}
        assert spool.acked == spool.head
        assert audit(engine) == []


async def test_writer_follows_a_failover_behind_the_pooler(postgres_cluster: PostgresCluster, spool: Spool) -> None:
    cluster = postgres_cluster
    with pgbouncer_for(cluster.primary.url()) as pooler, opened(pooler.url) as engine:
        migrate.upgrade(engine)
        writer = make_writer(spool, engine)
        writer.register()
        await store(spool, writer, "A")
        cluster.wait_for_standby()
        cluster.kill_primary()
        async with failing(spool, writer, "B"):
            cluster.promote()
            pooler.lead_to(cluster.primary.port)
        await store(spool, writer, "C")
        assert stored_tickers(engine) == {"A", "B", "C"}
        assert audit(engine) == []


def test_pooler_that_falls_silent_after_login_becomes_unavailable(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pgbouncer_for(postgres_url) as pooler:
        psycopg.connect(pooler.url).close()  # from now on it knows what to answer to a login
        pooler.command(f"PAUSE {postgres_url.rpartition('/')[2]}")
        monkeypatch.setattr(transaction_watchdog, "TRANSACTION_TIMEOUT_SECONDS", 0.2)
        with opened(pooler.url) as engine, pytest.raises(DatabaseUnavailable, match="server cannot be reached"):
            fetch_all(engine, text("SELECT 1"))


# -- refused


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_mode_without_sessions_is_refused_by_name(
    command: Command, write_config_for: Callable[..., Path], postgres_url: str, mode: str
) -> None:
    with pgbouncer_for(postgres_url, mode) as pooler:
        with opened(pooler.url) as engine, pytest.raises(DatabaseUnsupported, match=f"pooler in {mode} mode"):
            migrate.upgrade(engine)
        for arguments in (["db", "upgrade"], ["check"]):
            result = command(*arguments, "--config", write_config_for(pooler.url))
            assert f"leads to a connection pooler in {mode} mode" in result.out + result.err
            assert result.code == 78


POOLS = {
    "a single server": ({"default_pool_size": 1}, 1),
    "two servers in turn": ({"server_round_robin": 1}, 2),
    "three servers in turn": ({"server_round_robin": 1}, 3),
}


@pytest.mark.parametrize(("settings", "servers"), POOLS.values(), ids=POOLS)
def test_transaction_mode_is_recognised_however_servers_are_chosen(
    postgres_url: str, settings: dict[str, int], servers: int
) -> None:
    with pgbouncer_for(postgres_url, "transaction", **settings) as pooler:
        clients = [psycopg.connect(pooler.url) for _ in range(servers)]
        for client in clients:
            client.execute("SELECT 1")  # opens a transaction, which takes a server of its own
        for client in clients:
            client.commit()  # a client that closes in a transaction takes the server with it
            client.close()
        for _ in range(servers):
            with opened(pooler.url) as engine, pytest.raises(DatabaseUnsupported, match="pooler in transaction mode"):
                fetch_all(engine, text("SELECT 1"))


def test_pooler_that_refuses_options_of_the_url_is_named(postgres_url: str) -> None:
    with pgbouncer_for(postgres_url) as pooler:
        url = f"{pooler.url}?options={quote('-c lock_timeout=1s')}"
        with opened(url) as engine, pytest.raises(DatabaseUnavailable, match="the connection pooler refused the sess"):
            fetch_all(engine, text("SELECT 1"))


def test_pooler_that_drops_options_of_the_url_is_refused_by_name(postgres_url: str) -> None:
    with pgbouncer_for(postgres_url, ignore_startup_parameters="options") as pooler:
        url = f"{pooler.url}?options={quote('-c search_path=public --lock-timeout=1s')}"
        said = re.escape("a connection pooler drops `options` of database.url (lock_timeout, search_path)")
        with opened(url) as engine, pytest.raises(DatabaseUnsupported, match=said):
            migrate.upgrade(engine)
