"""Databases and disks that fail for a while: what comes meanwhile is written afterwards, once, none of it set aside."""

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
AWAY = "the database cannot be reached"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


def complaints(stage: OutageScenario) -> int:
    """How often it has said that the database is away."""
    return stage.daemon.stderr.count(AWAY)


# The database goes away.


@pytest.mark.postgres
async def test_a_server_that_is_stopped_and_killed_under_load_costs_nothing(
    fork_server: ForkServer, postgres: Postgres, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, postgres.url()) as stage:
        for end in (postgres.stop, postgres.kill, postgres.stop):
            before = complaints(stage)
            end()
            await stage.assert_receives_for(1.5)
            # One warning a step, and steps grow longer.
            assert 1 <= complaints(stage) - before <= 12
            postgres.start()
            await stage.drained()
            await stage.assert_receives_for(0.3)
        await stage.end()


async def test_a_file_that_somebody_else_holds_is_waited_for(
    fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, sqlite_url) as stage:
        with closing(sqlite3.connect(tmp_path / "ingestor.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            await stage.assert_receives_for(6.5)  # SQLite itself waits for five
            assert complaints(stage) >= 1
            assert stage.daemon.status["spool"]["entries"] > 1000
        await stage.end()


@pytest.mark.postgres
async def test_a_session_that_hangs_does_not_hold_up_receiving(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, postgres_url) as stage:
        for _ in range(3):
            with stopped_session(postgres_url):
                await stage.assert_receives_for(1)
                assert stage.daemon.status["spool"]["entries"] > 100
            await stage.drained()
        await stage.end()


@contextmanager
def stopped_session(url: str) -> Iterator[None]:
    """SIGSTOP for the daemon's session, until the end of the block."""
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
async def test_a_lock_that_is_not_given_up_ends_the_statement_and_not_the_daemon(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, postgres_url) as stage:
        with stage.daemon.db.held():
            await stage.assert_receives_for(17)
            assert "lock timeout" in stage.daemon.stderr
        await stage.end()


@pytest.mark.postgres
async def test_a_connection_that_is_cut_right_after_every_commit_writes_nothing_twice(
    fork_server: ForkServer, postgres_url: str, tcp_proxy: Callable[[str], Any], tmp_path: Path
) -> None:
    proxy: TcpProxy = await tcp_proxy(postgres_url)
    url = postgres_url.replace(postgres_url.rpartition(":")[2].partition("/")[0], str(proxy.port))
    async with OutageScenario(fork_server, tmp_path, url) as stage:
        stage.daemon.db.url = postgres_url
        for number in range(9):
            await cut_at_commit(stage, proxy, committed=number % 3 > 0)
        await stage.end()
    assert complaints(stage) >= 9


async def cut_at_commit(stage: OutageScenario, proxy: TcpProxy, *, committed: bool) -> None:
    """Cut, with the word passed on or its last byte kept back, and wait until something else was written."""
    position, accepted = written(stage), proxy.accepted
    proxy.cut_after("to_server", b"COMMIT\0" if committed else b"COMMIT")
    await until(lambda: proxy.accepted > accepted and written(stage) > position + committed)


def written(stage: OutageScenario) -> int:
    position: int = stage.daemon.db.one("SELECT max(position) FROM instances")
    return position


# A disk is full.


async def test_a_full_disk_under_the_database_is_waited_out_and_sets_nothing_aside(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", 24 * MEBIBYTE) as folder:
        async with OutageScenario(fork_server, tmp_path, f"sqlite:///{folder / 'ingestor.db'}") as stage:
            for _ in range(2):
                before = complaints(stage)
                with fill_disk(folder):
                    await stage.assert_receives_for(2)
                    assert complaints(stage) > before
                await stage.drained()
            await stage.end()
    assert "full" in stage.daemon.stderr


async def test_a_full_disk_under_the_spool_closes_the_connections_until_there_is_room(
    fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", 64 * MEBIBYTE) as folder:
        async with OutageScenario(fork_server, tmp_path, sqlite_url, spool={"path": str(folder / "spool")}) as stage:
            with fill_disk(folder):
                await until(lambda: states(stage) == {"spool_full"})
                await stage.drained()
                await asyncio.sleep(1)
                assert states(stage) == {"spool_full"}
            await stage.daemon.live()
            await stage.end()
            assert_closed_on_purpose(stage, times=1)


async def test_started_on_a_full_disk_it_waits_for_room(fork_server: ForkServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 80 * MEBIBYTE) as folder:
        url = f"sqlite:///{folder / 'ingestor.db'}"
        async with OutageScenario(fork_server, tmp_path, url, spool={"path": str(folder / "spool")}) as stage:
            await stage.end()
            with fill_disk(folder):
                stage.daemon.start()
                await until(lambda: states(stage) == {"spool_full"})
            stage.feed.rate = 300
            await stage.daemon.live()
            await stage.assert_receives_for(0.5)
            await stage.end()
            for ticker in TICKERS:
                assert "spool_full" in stage.daemon.db.states(ticker)


async def test_told_to_stop_while_the_disk_under_the_spool_is_full_it_stops(
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
        await daemon.live()
        with fill_disk(folder):
            await until(lambda: set(daemon.states) == {"spool_full"})
            await asyncio.sleep(0.3)  # until it has tried to have its ballast again
            with fill_disk(folder, "what the ballast left"), pytest.raises(SpoolFailed, match="the disk is still full"):
                for _ in range(8):  # more than the log has room for in itself
                    daemon._service._spool.append(frame("x" * MEBIBYTE))
                await asyncio.wait_for(daemon.stop(), 20)
        async with InProcessDaemon(config, simulator.api_key) as daemon:
            await daemon.live()
    states = daemon.db.states(TICKERS[0])
    assert states == ["pending", "live", "spool_full", "crashed", "pending", "live", "stopped"]


@pytest.mark.postgres
async def test_a_full_spool_closes_the_connections_until_the_database_is_back(
    fork_server: ForkServer, postgres: Postgres, tmp_path: Path
) -> None:
    async with OutageScenario(fork_server, tmp_path, postgres.url(), spool={"max_bytes": "1MiB"}, rate=1500) as stage:
        postgres.stop()
        await until(lambda: states(stage) == {"spool_full"})
        assert stage.daemon.status["spool"]["bytes"] < 1.05 * MEBIBYTE
        postgres.start()
        await stage.daemon.live()
        await stage.end()
        assert_closed_on_purpose(stage, times=1)
        facts = stage.daemon.db.column("SELECT detail FROM events WHERE detail LIKE '%used_percent%' ORDER BY seq")
        levels = [json.loads(detail)["level"] for detail in facts]
        # How many steps there are on the way down, and before, is a matter of the machine's other work.
        assert "filling critical full" in " ".join(levels)
        assert (levels.count("full"), levels[-1]) == (1, "fine")


def states(stage: OutageScenario) -> set[str]:
    return {one["state"] for one in stage.daemon.status.get("subscriptions", ())}


def assert_closed_on_purpose(stage: OutageScenario, times: int) -> None:
    for ticker in TICKERS:
        assert stage.daemon.db.states(ticker) == [
            "pending",
            "live",
            *["spool_full", "pending", "live"] * times,
            "stopped",
        ]


# A database is restored from an older copy.


async def test_a_file_put_back_from_an_older_copy_leaves_a_hole_that_is_on_record(
    fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    file, copy = tmp_path / "ingestor.db", tmp_path / "copy.db"
    async with OutageScenario(fork_server, tmp_path, sqlite_url) as stage:
        await stage.drained()
        with closing(sqlite3.connect(file)) as db, closing(sqlite3.connect(copy)) as backup:
            db.backup(backup)
        kept = stored(f"sqlite:///{copy}")
        await stage.assert_receives_for(0.5)
        assert await stage.daemon.terminate() == 0
        taken = set(range(stage.feed.count)) - kept
        copy.rename(file)
        stage.daemon.start()
        await stage.daemon.live()
        await stage.assert_receives_for(0.5)
        assert len(taken) > 100
        await stage.end(without=taken)
        assert_hole_on_record(stage)


def stored(url: str) -> set[int]:
    """The events that a copy holds."""
    return {number_of(json.loads(body)) for body in DbReader(url).column("SELECT body FROM payloads")}


@pytest.mark.postgres
async def test_a_database_put_back_from_an_older_copy_under_the_running_daemon_leaves_a_hole_that_is_on_record(
    fork_server: ForkServer, postgres: Postgres, tmp_path: Path
) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE books")
        async with OutageScenario(fork_server, tmp_path, postgres.url("books")) as stage:
            await stage.drained()
            await killed_and_copied(stage, admin)
            kept = stored(postgres.url("copy"))
            stage.daemon.start()
            await stage.daemon.live()
            await stage.assert_receives_for(0.5)
            await stage.silent()
            taken = set(range(stage.feed.count)) - kept
            admin.execute("DROP DATABASE books WITH (FORCE)")
            admin.execute("ALTER DATABASE copy RENAME TO books")
            stage.feed.rate = 300
            await until(lambda: "older copy" in stage.daemon.stderr)
            await stage.assert_receives_for(0.5)
            assert len(taken) > 100
            await stage.end(without=taken)
            assert_hole_on_record(stage)


async def killed_and_copied(stage: OutageScenario, admin: psycopg.Connection[Any]) -> None:
    """Copy the database while, for all it knows, the daemon is live."""
    stage.daemon.kill()
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'books'"
    await until(lambda: admin.execute(sessions).fetchone() == (0,))
    admin.execute("CREATE DATABASE copy TEMPLATE books")


def assert_hole_on_record(stage: OutageScenario) -> None:
    """Another instance goes on; the one before it is closed as lost, and somebody was told."""
    db = stage.daemon.db
    assert db.one("SELECT count(*) FROM instances") == 2
    for ticker in TICKERS:
        assert "lost" in db.states(ticker)
    assert "one of them is an older copy" in stage.daemon.stderr
