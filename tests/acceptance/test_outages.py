"""Outages of databases and disks: events received meanwhile are written afterwards, once, and not as dead letters."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingestor.errors import SpoolFailed
from ingestor.spool import spool
from ingestor.spool.spool import Spool
from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import InProcessDaemon, until, write_config
from ..support.db_reader import DbReader
from ..support.entries import frame
from ..support.faulty_disks import fill_disk, small_disk
from ..support.fork_server import ForkServer
from ..support.numbered_feed import PATH, TICKERS, number_of
from ..support.outage_scenario import OutageScenario
from ..support.postgres_server import Postgres
from ..support.tcp_proxy import TcpProxy

MEBIBYTE = 1 << 20
AWAY = "the database is unavailable"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


def count_outage_warnings(scenario: OutageScenario) -> int:
    """Count the warnings that the database is unavailable."""
    return scenario.daemon.stderr.count(AWAY)


def waiting(scenario: OutageScenario) -> int:
    """Return how many entries wait for the database."""
    return int(scenario.daemon.status.get("spool", {}).get("entries", 0))


# The database is unavailable.


@pytest.mark.postgres
async def test_postgres_stops_and_kills_under_load_lose_nothing(
    fork_server: ForkServer, postgres: Postgres, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, postgres.url()) as scenario:
        for end in (postgres.stop, postgres.kill, postgres.stop):
            before = count_outage_warnings(scenario)
            end()
            await scenario.assert_receives_for(1.5)
            await until(lambda: count_outage_warnings(scenario) > before)  # noqa: B023 - is waited for here
            # One for each different error: such as a connection that ended, then one that is refused.
            assert count_outage_warnings(scenario) - before <= 4
            postgres.start()
            await scenario.wait_until_drained()
            await scenario.assert_receives_for(0.3)
        await scenario.finish()


async def test_locked_sqlite_file_is_waited_for(fork_server: ForkServer, sqlite_url: str, tmp_path: Path) -> None:
    async with OutageScenario(fork_server, tmp_path, sqlite_url) as scenario:
        with closing(sqlite3.connect(tmp_path / "ingestor.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            await scenario.assert_receives_for(6.5)  # SQLite's own busy timeout is 5 s
            await until(lambda: count_outage_warnings(scenario) >= 1)
            await until(lambda: waiting(scenario) > 1000)
        await scenario.finish()


@pytest.mark.postgres
async def test_hanging_session_does_not_block_receiving(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, postgres_url) as scenario:
        for _ in range(3):
            with stopped_session(postgres_url):
                await scenario.assert_receives_for(1)
                await until(lambda: waiting(scenario) > 100)
            await scenario.wait_until_drained()
        await scenario.finish()


@contextmanager
def stopped_session(url: str) -> Iterator[None]:
    """Stop the daemon's session with SIGSTOP until the end of the block."""
    with psycopg.connect(url) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'ingestor' AND datname = current_database()"
        pids = [pid for (pid,) in connection.execute(query)]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.postgres
async def test_held_lock_times_out_statement_but_not_daemon(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, postgres_url) as scenario:
        with scenario.daemon.db.write_locked():
            await scenario.assert_receives_for(17)
            await until(lambda: "lock timeout" in scenario.daemon.stderr)
        await scenario.finish()


@pytest.mark.postgres
async def test_connection_cut_after_each_commit_duplicates_nothing(
    fork_server: ForkServer, postgres_url: str, tcp_proxy: Callable[[str], Any], tmp_path: Path
) -> None:
    proxy: TcpProxy = await tcp_proxy(postgres_url)
    url = postgres_url.replace(postgres_url.rpartition(":")[2].partition("/")[0], str(proxy.port))
    async with OutageScenario(fork_server, tmp_path, url) as scenario:
        scenario.daemon.db.url = postgres_url
        for number in range(9):
            await cut_at_commit(scenario, proxy, committed=number % 3 > 0)
        await scenario.finish()
    assert count_outage_warnings(scenario) >= 3, "several cuts may fall into one outage"


async def cut_at_commit(scenario: OutageScenario, proxy: TcpProxy, *, committed: bool) -> None:
    """Cut after the word, or before its last byte, and wait until another batch is written."""
    position, accepted = written(scenario), proxy.accepted
    proxy.cut_after("to_server", b"COMMIT\0" if committed else b"COMMIT")
    await until(lambda: proxy.accepted > accepted and written(scenario) > position + committed)


def written(scenario: OutageScenario) -> int:
    position: int = scenario.daemon.db.scalar("SELECT max(position) FROM instances")
    return position


# A disk is full.


async def test_full_database_disk_is_waited_out_without_dead_letters(fork_server: ForkServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 24 * MEBIBYTE) as folder:
        async with OutageScenario(fork_server, tmp_path, f"sqlite:///{folder / 'ingestor.db'}") as scenario:
            for _ in range(2):
                before = count_outage_warnings(scenario)
                with fill_disk(folder):
                    await scenario.assert_receives_for(2)
                    await until(lambda: count_outage_warnings(scenario) > before)  # noqa: B023 - is waited for here
                await scenario.wait_until_drained()
            await scenario.finish()
    assert "full" in scenario.daemon.stderr


async def test_full_spool_disk_closes_connections_until_space_is_free(
    fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", 64 * MEBIBYTE) as folder:
        async with OutageScenario(fork_server, tmp_path, sqlite_url, spool={"path": str(folder / "spool")}) as scenario:
            with fill_disk(folder):
                await until(lambda: states(scenario) == {"spool_full"})
                await scenario.wait_until_drained()
                await asyncio.sleep(1)
                assert states(scenario) == {"spool_full"}
            await scenario.daemon.wait_until_live()
            await scenario.finish()
            assert_closed_on_purpose(scenario, times=1)


async def test_start_on_full_disk_waits_for_space(fork_server: ForkServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 80 * MEBIBYTE) as folder:
        url = f"sqlite:///{folder / 'ingestor.db'}"
        async with OutageScenario(fork_server, tmp_path, url, spool={"path": str(folder / "spool")}) as scenario:
            await scenario.finish()
            with fill_disk(folder):
                scenario.daemon.start()
                await until(lambda: states(scenario) == {"spool_full"})
            scenario.feed.rate = 300
            await scenario.daemon.wait_until_live()
            await scenario.assert_receives_for(0.5)
            await scenario.finish()
            for ticker in TICKERS:
                assert "spool_full" in scenario.daemon.db.states(ticker)


async def test_sigterm_stops_daemon_on_full_spool_disk(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "DISK_FULL_STOP_SECONDS", 0.5)
    with small_disk(tmp_path / "small", 64 * MEBIBYTE) as folder:
        config = write_config(
            tmp_path,
            url=simulator.url,
            database_url=sqlite_url,
            subscriptions={PATH: TICKERS},
            spool={"path": str(folder / "spool")},
        )
        daemon = await InProcessDaemon(config, simulator.api_key).__aenter__()
        await daemon.wait_until_live()
        with fill_disk(folder):
            await until(lambda: set(daemon.states) == {"spool_full"})
            await idle(daemon._service._spool)  # it has tried to recreate its ballast
            with fill_disk(folder, "what the ballast left"), pytest.raises(SpoolFailed, match="the disk is still full"):
                for _ in range(8):  # more than fits into the log's own buffer
                    daemon._service._spool.append(frame("x" * MEBIBYTE))
                await asyncio.wait_for(daemon.stop(), 20)
        async with InProcessDaemon(config, simulator.api_key) as daemon:
            await daemon.wait_until_live()
    states = daemon.db.states(TICKERS[0])
    assert states == ["pending", "live", "spool_full", "crashed", "pending", "live", "stopped"]


async def idle(spool: Spool) -> None:
    """Wait until the spool's thread has done all that it was given."""
    await until(lambda: spool.synced == spool.head)
    await asyncio.to_thread(spool._request, lambda: None)


@pytest.mark.postgres
async def test_full_spool_closes_connections_until_database_is_back(
    fork_server: ForkServer, postgres: Postgres, tmp_path: Path
) -> None:
    async with OutageScenario(
        fork_server, tmp_path, postgres.url(), spool={"max_bytes": "1MiB"}, rate=1500
    ) as scenario:
        postgres.stop()
        await until(lambda: states(scenario) == {"spool_full"})
        assert scenario.daemon.status["spool"]["bytes"] < 1.05 * MEBIBYTE
        scenario.feed.rate = 300  # which fills no spool again, even on a slow machine
        postgres.start()
        await scenario.daemon.wait_until_live()
        await scenario.finish()
        assert_closed_on_purpose(scenario, times=1)
        facts = scenario.daemon.db.column("SELECT detail FROM events WHERE detail LIKE '%used_percent%' ORDER BY seq")
        levels = [json.loads(detail)["level"] for detail in facts]
        # The number of steps before and after depends on the load of the machine.
        assert "filling critical full" in " ".join(levels)
        assert (levels.count("full"), levels[-1]) == (1, "fine")


def states(scenario: OutageScenario) -> set[str]:
    return {subscription["state"] for subscription in scenario.daemon.status.get("subscriptions", ())}


def assert_closed_on_purpose(scenario: OutageScenario, times: int) -> None:
    for ticker in TICKERS:
        assert scenario.daemon.db.states(ticker) == [
            "pending",
            "live",
            *["spool_full", "pending", "live"] * times,
            "stopped",
        ]


# A database is restored from an older copy, and the spool keeps nothing of what it lacks. test_failover.py keeps it.

KEEP_NOTHING = {"keep": {"size": "0B"}}


async def test_restored_sqlite_copy_is_recorded_as_lost(
    fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    file, copy = tmp_path / "ingestor.db", tmp_path / "copy.db"
    async with OutageScenario(fork_server, tmp_path, sqlite_url, spool=KEEP_NOTHING) as scenario:
        await scenario.wait_until_drained()
        with closing(sqlite3.connect(file)) as db, closing(sqlite3.connect(copy)) as backup:
            db.backup(backup)
        kept = stored(f"sqlite:///{copy}")
        await until(lambda: len(scenario.feed.acknowledged - kept) > 100)
        assert await scenario.daemon.terminate() == 0
        taken = set(range(scenario.feed.event_count)) - kept
        copy.rename(file)
        scenario.daemon.start()
        await scenario.daemon.wait_until_live()
        await scenario.assert_receives_for(0.5)
        await scenario.finish(without=taken)
        assert_loss_is_recorded(scenario)


def stored(url: str) -> set[int]:
    """Return the events that a copy contains."""
    return {number_of(json.loads(body)) for body in DbReader(url).column("SELECT body FROM payloads")}


@pytest.mark.postgres
async def test_postgres_restored_under_daemon_is_recorded_as_lost(
    fork_server: ForkServer, postgres: Postgres, tmp_path: Path
) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE books")
        async with OutageScenario(fork_server, tmp_path, postgres.url("books"), spool=KEEP_NOTHING) as scenario:
            await scenario.wait_until_drained()
            await killed_and_copied(scenario, admin)
            kept = stored(postgres.url("copy"))
            scenario.daemon.start()
            await scenario.daemon.wait_until_live()
            await until(lambda: len(scenario.feed.acknowledged - kept) > 100)
            await scenario.stop_feed()
            taken = set(range(scenario.feed.event_count)) - kept
            admin.execute("DROP DATABASE books WITH (FORCE)")
            admin.execute("ALTER DATABASE copy RENAME TO books")
            scenario.feed.rate = 300
            await until(lambda: "older copy" in scenario.daemon.stderr)
            await scenario.assert_receives_for(0.5)
            await scenario.finish(without=taken)
            assert_loss_is_recorded(scenario)


async def killed_and_copied(scenario: OutageScenario, admin: psycopg.Connection[Any]) -> None:
    """Copy the database while it shows the daemon as live."""
    scenario.daemon.kill()
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'books'"
    await until(lambda: admin.execute(sessions).fetchone() == (0,))
    admin.execute("CREATE DATABASE copy TEMPLATE books")


def assert_loss_is_recorded(scenario: OutageScenario) -> None:
    """Assert that a new instance continues, and that the old one is closed as lost with a warning."""
    db = scenario.daemon.db
    assert db.scalar("SELECT count(*) FROM instances") == 2
    for ticker in TICKERS:
        assert "lost" in db.states(ticker)
    assert "one of them is an older copy" in scenario.daemon.stderr
