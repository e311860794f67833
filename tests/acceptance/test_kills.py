"""Kill the daemon at any moment, also during recovery: everything acknowledged must be in the tables exactly once."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ..support.daemon import until, write_config
from ..support.fork_server import ForkedDaemon, ForkServer
from ..support.numbered_feed import KEY, PATH, TICKERS, NumberedFeed
from ..support.reconciliation import (
    assert_balances,
    assert_complete,
    assert_not_live_when_killed,
    assert_recovers,
    spool_head,
)
from ..support.strace import SyscallFault, count_calls, inject_fault

KILLS_OF_A_ROUND = 15
LIFE_SECONDS = 1.2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_" in metafunc.fixturenames:
        rounds = max(metafunc.config.getoption("kills") // KILLS_OF_A_ROUND, 1)
        metafunc.parametrize("round_", range(rounds))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


async def test_random_kills_lose_and_duplicate_nothing(
    round_: int, fork_server: ForkServer, database_url: str, tmp_path: Path
) -> None:
    pick = random.Random(round_)
    killed = []
    async with NumberedFeed(rate=300) as feed:
        config = write_config(tmp_path, url=feed.url, database_url=database_url, subscriptions={PATH: TICKERS})
        daemon = ForkedDaemon(fork_server, config, KEY)
        for _ in range(KILLS_OF_A_ROUND):
            daemon.start()
            # A third of the kills come during recovery.
            await asyncio.sleep(pick.choice((pick.uniform(0, 0.3), pick.uniform(0.3, 0.9), pick.uniform(0.3, 0.9))))
            killed.append(datetime.now(UTC))
            daemon.kill()
        if not feed.acknowledged:  # on a slow machine, all kills come during recovery
            daemon.start()
            await until(lambda: feed.acknowledged)
            killed.append(datetime.now(UTC))
            daemon.kill()
        feed.rate = 0
        await assert_recovers(daemon, fork_server)
        print(assert_complete(daemon.db, tmp_path / "spool", feed.event_count, feed.acknowledged))
        assert_not_live_when_killed(daemon.db, killed)


# Kills at chosen system calls hit every time what a random kill hits once in a thousand times.


async def test_kill_at_chosen_syscall_loses_and_duplicates_nothing(
    fork_server: ForkServer, database_url: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    pick = random.Random(0)
    killed = []
    async with NumberedFeed(rate=300) as feed:
        config = write_config(tmp_path, url=feed.url, database_url=database_url, subscriptions={PATH: TICKERS})
        daemon = ForkedDaemon(fork_server, config, KEY)
        cuts = sampled(await reference(daemon, fork_server), pick, pytestconfig.getoption("kills"))
        for cut in cuts:
            with inject_fault(fork_server.pid, cut):
                daemon.start()
                fired = await died(daemon)
            killed += [datetime.now(UTC)] * fired
            daemon.kill()
        feed.rate = 0
        await assert_recovers(daemon, fork_server)
        assert len(killed) > len(cuts) / 2
        print(
            len(killed),
            "directed kills;",
            assert_complete(daemon.db, tmp_path / "spool", feed.event_count, feed.acknowledged),
        )
        assert_not_live_when_killed(daemon.db, killed)


@pytest.mark.parametrize(
    ("file", "call", "number"),
    [
        ("lock", "pwrite64", 1),
        ("spool.db", "pwrite64", 1),
        ("spool.db-wal", "pwrite64", 2),
        ("spool.db-wal", "fdatasync", 3),
    ],
)
async def test_kill_during_spool_creation_is_recovered(
    file: str, call: str, number: int, fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    async with NumberedFeed(rate=300) as feed:
        config = write_config(tmp_path, url=feed.url, database_url=sqlite_url, subscriptions={PATH: TICKERS})
        daemon = ForkedDaemon(fork_server, config, KEY)
        with inject_fault(fork_server.pid, SyscallFault(call, number, tmp_path / "spool" / file)):
            daemon.start()
            assert await died(daemon)
        daemon.start()
        await until(lambda: feed.acknowledged)
        await daemon.terminate(timeout_seconds=20)
        await assert_recovers(daemon, fork_server)
        assert_complete(daemon.db, tmp_path / "spool", feed.event_count, feed.acknowledged)
        assert daemon.db.column("SELECT kind FROM events WHERE kind = 'lost'") == []


@pytest.mark.parametrize(
    "cut",
    [
        SyscallFault("rename", 1),
        SyscallFault("unlink", 1, Path("corrupt")),
        SyscallFault("fdatasync", 3, Path("spool.db-wal")),
    ],
    ids=lambda cut: cut.call,
)
async def test_kill_during_quarantine_keeps_and_reports_the_spool(
    cut: SyscallFault, fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    async with NumberedFeed(rate=300) as feed:
        config = write_config(tmp_path, url=feed.url, database_url=sqlite_url, subscriptions={PATH: TICKERS})
        daemon = ForkedDaemon(fork_server, config, KEY)
        await live_and_die(daemon)
        with closing(sqlite3.connect(spool / "spool.db", isolation_level=None)) as database:
            database.execute("UPDATE head SET format = 1")
        with inject_fault(fork_server.pid, replace(cut, path=cut.path and spool / cut.path)):
            daemon.start()
            assert await died(daemon)
        await assert_recovers(daemon, fork_server)
    assert daemon.db.scalar("SELECT count(*) FROM events WHERE kind = 'lost'") == 1
    assert {daemon.db.states(ticker).count("lost") for ticker in TICKERS} == {1}
    (kept,) = spool.glob("unreadable-*/spool.db")
    assert spool_head(kept.parent)["format"] == 1


async def reference(daemon: ForkedDaemon, fork_server: ForkServer) -> Counter[tuple[str, str]]:
    """Count the system calls of a daemon that finds an unknown spool, during its first second. It is then killed."""
    await live_and_die(daemon)
    with count_calls(fork_server.pid, daemon.folder / "calls") as counts:
        await live_and_die(daemon)
    return counts


async def live_and_die(daemon: ForkedDaemon) -> None:
    daemon.start()
    await daemon.wait_until_live()
    await asyncio.sleep(LIFE_SECONDS / 4)
    daemon.kill()


def sampled(counts: Counter[tuple[str, str]], pick: random.Random, number: int) -> list[SyscallFault]:
    """Choose calls of every kind on every file in turn, early ones more often, because recovery runs early."""
    kinds = sorted(kind for kind in counts if not kind[1].endswith("-shm"))
    chosen = [kinds[index % len(kinds)] for index in range(number)]
    return [
        SyscallFault(call, round(counts[call, where] ** pick.random()), None if where == "socket" else Path(where))
        for call, where in chosen
    ]


async def died(daemon: ForkedDaemon) -> bool:
    """Return whether the daemon is killed before it has been live for half a second."""
    await until(lambda: daemon.has_ended or daemon.is_live)
    try:
        return await daemon.wait_for_exit(LIFE_SECONDS / 2) == -signal.SIGKILL
    except TimeoutError:
        return False


# Disks that return errors.


@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
async def test_failed_spool_write_stops_daemon_and_acks(
    call: str, fork_server: ForkServer, sqlite_url: str, tmp_path: Path
) -> None:
    async with NumberedFeed(rate=300) as feed:
        config = write_config(tmp_path, url=feed.url, database_url=sqlite_url, subscriptions={PATH: TICKERS})
        daemon = ForkedDaemon(fork_server, config, KEY)
        with inject_fault(
            fork_server.pid, SyscallFault(call, 60, tmp_path / "spool" / "spool.db-wal", effect="error=EIO")
        ):
            daemon.start()
            await until(lambda: feed.acknowledged)
            assert await daemon.wait_for_exit() == 74
        assert "Check the disk" in daemon.stderr
        await assert_recovers(daemon, fork_server)
        assert_complete(daemon.db, tmp_path / "spool", feed.event_count, feed.acknowledged)


async def test_failed_database_sync_is_retried(fork_server: ForkServer, sqlite_url: str, tmp_path: Path) -> None:
    async with NumberedFeed(rate=300) as feed:
        config = write_config(tmp_path, url=feed.url, database_url=sqlite_url, subscriptions={PATH: TICKERS})
        daemon = ForkedDaemon(fork_server, config, KEY)
        with inject_fault(
            fork_server.pid, SyscallFault("fdatasync", "8+5", tmp_path / "ingestor.db-wal", effect="error=EIO")
        ):
            daemon.start()
            await until(lambda: daemon.stderr.count("disk I/O error") >= 3)
        await until(lambda: daemon.status["database"]["up"])
        assert await daemon.terminate(timeout_seconds=20) == 0
        await assert_balances(daemon, fork_server)
        assert_complete(daemon.db, tmp_path / "spool", feed.event_count, feed.acknowledged)
