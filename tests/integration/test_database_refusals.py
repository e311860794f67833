"""What the daemon does with a database that refuses to work with it, and what it says."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from ingestor.errors import DatabaseUnsupported
from tests.support.faulty_simulator import FaultySimulator
from tests.support.pgbouncer import pgbouncer_for
from tests.support.postgres_server import USER, Postgres, fresh_database

from ..support import expected_rows
from ..support.daemon import InProcessDaemon, until, write_config
from ..support.db_reader import DbReader

pytestmark = pytest.mark.postgres
SECRET = "hunter2-of-the-database"
CROWD = "/real-time/crowd-sentiment"


@pytest.fixture
def make_daemon(simulator: FaultySimulator, tmp_path: Path) -> Callable[[str], InProcessDaemon]:
    def make(database_url: str) -> InProcessDaemon:
        config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions={CROWD: ["AAPL"]})
        config.chmod(0o600)  # it may contain a password
        return InProcessDaemon(config, simulator.api_key)

    return make


async def test_daemon_ends_at_its_start_if_the_database_is_in_sql_ascii(
    make_daemon: Callable[[str], InProcessDaemon], postgres_server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh_database(postgres_server_url, encoding="SQL_ASCII") as url:
        with pytest.raises(DatabaseUnsupported, match="has the encoding SQL_ASCII") as ended:
            async with make_daemon(url):
                pass
        assert ended.value.exit_code == 78
        (fatal,) = [record for record in caplog.records if "fatal error" in record.getMessage()]
        assert fatal.exc_info is None  # a traceback is for mistakes in the program


async def test_running_daemon_waits_while_a_pooler_is_in_transaction_mode(
    make_daemon: Callable[[str], InProcessDaemon], simulator: FaultySimulator, postgres_url: str
) -> None:
    with pgbouncer_for(postgres_url) as pooler:
        async with make_daemon(pooler.url) as daemon:
            daemon.db = DbReader(postgres_url)
            await until(daemon.db.current)
            pooler.stop()
            pooler.start("transaction")
            await until(lambda: "pooler in transaction mode" in (daemon.status.database.last_error or ""))
            assert not await is_ready(daemon, "the database is unavailable: database.url leads to a connection pooler")
            waiting = daemon.status.spool.entries
            await until(lambda: daemon.status.spool.entries > waiting + 5)
            pooler.stop()
            pooler.start("session")
            simulator.interval_seconds = None
            await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))


async def test_missing_permission_is_named_and_can_be_granted_while_the_daemon_runs(
    make_daemon: Callable[[str], InProcessDaemon], postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = postgres_url.rpartition("/")[2]
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE w_{name} LOGIN".encode())
        try:
            daemon = make_daemon(postgres_url.replace(USER, f"w_{name}", 1))
            sentence = "a permission is missing: permission denied for schema public; GRANT CREATE, USAGE ON SCHEMA"

            async def grant() -> None:
                await until(lambda: daemon._service.url and daemon.status.database.last_error)
                assert sentence in str(daemon.status.database.last_error)
                assert not await is_ready(daemon, f"the database is unavailable: {sentence}")
                owner.execute(f"GRANT CREATE ON SCHEMA public TO w_{name}".encode())

            await enter_while(daemon, grant)
            await until(daemon.db.current)
            await daemon.stop()
            (warning,) = [record for record in caplog.records if "database is unavailable" in record.getMessage()]
            assert sentence in warning.__dict__["reason"]
        finally:
            owner.execute(f"DROP OWNED BY w_{name}".encode())
            owner.execute(f"DROP ROLE w_{name}".encode())


async def test_wrong_password_is_named_by_log_status_and_readyz_without_it(
    make_daemon: Callable[[str], InProcessDaemon], postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    postgres.execute("CREATE ROLE w LOGIN PASSWORD 'right-password'")
    postgres.execute(f"CREATE DATABASE {USER}_w OWNER w")
    address = f"127.0.0.1:{postgres.port}"
    daemon = make_daemon(f"postgresql://w:{SECRET}@{address}/{USER}_w")
    rules = postgres.data_folder / "pg_hba.conf"
    rules.write_text(f"host all w 127.0.0.1/32 scram-sha-256\nhost all {USER} 127.0.0.1/32 trust\n")
    postgres.execute("SELECT pg_reload_conf()")
    sentence = (
        f'the database server refused the password: {address}: password authentication failed for user "w"; correct'
        " user and password in database.url or in its url_file"
    )

    async def correct() -> None:
        await until(lambda: daemon._service.url and daemon.status.database.last_error)
        assert str(daemon.status.database.last_error).startswith(sentence)
        assert not await is_ready(daemon, f"the database is unavailable: {sentence}")
        postgres.execute(f"ALTER ROLE w PASSWORD '{SECRET}'")

    await enter_while(daemon, correct)
    await daemon.stop()
    (warning,) = [record for record in caplog.records if "database is unavailable" in record.getMessage()]
    assert warning.__dict__["reason"] == sentence
    assert SECRET not in caplog.text


async def test_locked_sqlite_file_is_named_by_log_status_and_readyz(
    make_daemon: Callable[[str], InProcessDaemon],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options | {"timeout": 0.05}))
    file = tmp_path / "ingestor.db"
    daemon = make_daemon(f"sqlite:///{file}")
    other = connect(file, isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("BEGIN IMMEDIATE")
    sentence = "another program holds a lock on the database file: database is locked; end its transaction"

    async def unlock() -> None:
        await until(lambda: daemon._service.url and daemon.status.database.last_error)
        assert str(daemon.status.database.last_error).startswith(sentence)
        assert not await is_ready(daemon, f"the database is unavailable: {sentence}")
        other.close()

    await enter_while(daemon, unlock)
    await daemon.stop()
    (warning,) = [record for record in caplog.records if "database is unavailable" in record.getMessage()]
    assert warning.__dict__["reason"].startswith(sentence)


async def enter_while(daemon: InProcessDaemon, act: Callable[[], Any]) -> None:
    await asyncio.gather(daemon.__aenter__(), act())


async def is_ready(daemon: InProcessDaemon, reason: str) -> bool:
    """Return whether /readyz says so; otherwise it must give this reason."""
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/readyz") as response:
        reasons = json.loads(await response.text())["reasons"]
    assert not reasons or any(found.startswith(reason) for found in reasons), reasons
    return response.status == 200
