"""Faults after which a database is behind its daemons, each as a function that inflicts and measures it.

Most are called with a running scenario, whose feed goes on sending, and return seconds. What takes long is done in a
thread, for the feed.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from .daemon import until, write_config
from .db_reader import DbReader, Row
from .failover_scenario import FailoverScenario
from .faulty_simulator import FaultySimulator
from .fork_server import ForkedDaemon, ForkServer
from .numbered_feed import KEY, PATH, TICKERS
from .postgres_cluster import PostgresCluster
from .postgres_server import Postgres

DATABASE = "ingestor"
Kill: TypeAlias = Literal["before", "during", "after", "never"]  # of the daemon, by the failover
KILLS = get_args(Kill)
PADDING_BYTES = 4_000
LOW_DISK = 0.15  # of it; with a tenth, the daemon begins to drop what is kept
HEALING_SECONDS = 480  # the lease of repairs, which is the dead receiver's for five minutes, and a search or two
WRITING_SECONDS = 60  # the longest wait for the first batch in a database that is there


def read_position(url: str) -> int:
    """Return how many entries are committed in this database, by all instances."""
    return int(DbReader(url).scalar("SELECT coalesce(sum(position), 0) FROM instances"))


async def wait_until_writing(url: str, since: int) -> float:
    """Wait until more is committed than this, and return the seconds."""
    started_at = time.monotonic()
    await until(lambda: read_position(url) > since, WRITING_SECONDS)
    return time.monotonic() - started_at


async def fail_over(cluster: PostgresCluster) -> float:
    """Kill the primary, promote the standby; the seconds count from the promotion to the first batch there."""
    cluster.kill_primary()
    before = read_position(cluster.standby.url(DATABASE))
    await asyncio.to_thread(cluster.promote)
    return await wait_until_writing(cluster.primary.url(DATABASE), before)


async def fail_over_to_lagging_standby(
    scenario: FailoverScenario, cluster: PostgresCluster, lag_seconds: float
) -> float:
    """Cut the standby off for this time, then fail over to it."""
    await scenario.wait_until_drained()
    cluster.wait_for_standby()
    cluster.cut()
    await scenario.receive_for(lag_seconds)
    return await fail_over(cluster)


async def fail_over_repeatedly(
    scenario: FailoverScenario, cluster: PostgresCluster, pick: random.Random, times: int
) -> float:
    """Fail over to a standby that lags, again and again, with kills of the daemon. Return the longest seconds."""
    slowest = 0.0
    for number in range(times):
        cluster.cut()
        await scenario.receive_for(pick.uniform(0.5, 3))
        slowest = max(slowest, await _fail_over_with_kill(scenario, cluster, KILLS[number % len(KILLS)]))
        await asyncio.to_thread(cluster.rebuild)
        await scenario.receive_for(pick.uniform(0.1, 1))
    return slowest


async def _fail_over_with_kill(scenario: FailoverScenario, cluster: PostgresCluster, kill: Kill) -> float:
    """Return 0 if the daemon was down at the promotion: then nothing is measured."""
    if kill == "before":
        scenario.kill_daemon()
        await scenario.restart_daemon()
    if kill == "during":
        scenario.kill_daemon()
        cluster.kill_primary()
        scenario.daemon.start()
        await asyncio.to_thread(cluster.promote)
        await scenario.wait_for_return()
        return 0
    seconds = await fail_over(cluster)
    if kill == "after":  # probably while it writes entries again
        scenario.kill_daemon()
        await scenario.restart_daemon()
    return seconds


async def restore_postgres(scenario: FailoverScenario, server: Postgres, age_seconds: float, *, running: bool) -> float:
    """Restore the server from a copy of this age, while the daemon runs or is stopped."""
    await scenario.wait_until_drained()
    backup = await asyncio.to_thread(server.backup)
    await scenario.receive_for(age_seconds)
    return await _restore(scenario, server.url(DATABASE), lambda: server.restore(backup), running=running)


async def restore_sqlite(scenario: FailoverScenario, file: Path, age_seconds: float, *, running: bool) -> float:
    """Replace the file by a copy of this age, while the daemon runs or is stopped."""
    await scenario.wait_until_drained()
    copy = file.with_name("backup.db")
    with closing(sqlite3.connect(file)) as database, closing(sqlite3.connect(copy)) as backup:
        database.backup(backup)
    await scenario.receive_for(age_seconds)

    def restore() -> None:
        for name in ("-wal", "-shm"):
            file.with_name(file.name + name).unlink(missing_ok=True)
        copy.replace(file)

    return await _restore(scenario, f"sqlite:///{file}", restore, running=running)


async def _restore(scenario: FailoverScenario, url: str, restore: Callable[[], None], *, running: bool) -> float:
    if not running:
        await scenario.stop_daemon()
    await asyncio.to_thread(restore)
    before, started_at = read_position(url), time.monotonic()
    if not running:
        await scenario.restart_daemon()
    await wait_until_writing(url, before)
    return time.monotonic() - started_at


async def lose_host(
    scenario: FailoverScenario, fork_server: ForkServer, server: Postgres, folder: Path, away_seconds: float
) -> float:
    """Run a second daemon, and lose it with its spool while the database is away. Count from the database's return."""
    folder.mkdir()
    url = server.url(DATABASE)
    config = write_config(folder, url=scenario.feed.url, database_url=url, subscriptions={PATH: TICKERS})
    async with ForkedDaemon(fork_server, config, KEY) as lost:
        await lost.wait_until_live()
        await scenario.receive_for(1)
        server.stop()
        await scenario.receive_for(away_seconds)
        lost.kill()
        shutil.rmtree(folder / "spool")
        await scenario.receive_for(1)
        await asyncio.to_thread(server.start)
    return await wait_until_writing(url, read_position(url))


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOver:
    """What happened when the receiver of two daemons was killed."""

    seconds: float  # until the other one was live
    gap_seconds: float  # on record then
    healed_seconds: float  # from the takeover until no gap was left
    missing: int  # seconds of a ticker without a value, of which the provider had one each


async def take_over(
    fork_server: ForkServer, provider: FaultySimulator, folder: Path, url: str, healing_seconds: float = HEALING_SECONDS
) -> TakeOver:
    """Kill the receiver of two daemons that stand by for each other. ``provider``: with a value each second."""
    receiver, other = (
        ForkedDaemon(fork_server, _standby_config(folder / name, provider, url), provider.api_key)
        for name in ("receiver", "other")
    )
    async with receiver:
        await receiver.wait_until_live()
        async with other:
            await until(lambda: other.status.get("standby", {}).get("role") == "standby")
            await asyncio.sleep(3)
            killed_at, started_at = datetime.now(UTC), time.monotonic()
            receiver.kill()
            await until(lambda: states(other) == {"live"}, WRITING_SECONDS)
            took_over_at = time.monotonic()
            gaps = await until(lambda: _gaps_after(other, killed_at))
            await until(lambda: not _gaps_after(other, killed_at), healing_seconds)
            healed_at = time.monotonic()
            assert await other.terminate(timeout_seconds=20) == 0
    return TakeOver(
        seconds=took_over_at - started_at,
        gap_seconds=max(gap["seconds"] for gap in gaps),
        healed_seconds=healed_at - took_over_at,
        missing=sum(_missing_seconds(other, ticker) for ticker in TICKERS),
    )


def states(daemon: ForkedDaemon) -> set[str]:
    """Return the states of the daemon's subscriptions; an empty set while it does not respond."""
    return {subscription["state"] for subscription in daemon.status.get("subscriptions", ())}


def _standby_config(folder: Path, provider: FaultySimulator, url: str) -> Path:
    folder.mkdir()
    standby = {"standby": True}
    return write_config(folder, url=provider.url, database_url=url, subscriptions={PATH: TICKERS}, provider=standby)


def _gaps_after(daemon: ForkedDaemon, moment: datetime) -> list[Row]:
    return [gap for gap in daemon.db.rows("SELECT seconds, to_at FROM gaps") if gap["to_at"] > moment]


def _missing_seconds(daemon: ForkedDaemon, ticker: str) -> int:
    query = f"SELECT ts FROM crowd_sentiment WHERE ticker = '{ticker}' ORDER BY ts"
    stored: list[datetime] = daemon.db.column(query)
    return round((stored[-1] - stored[0]).total_seconds()) + 1 - len(stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class FullDisk:
    """What happened on a disk that kept entries had filled, when the database was away until the spool was full."""

    kept_bytes: int  # before
    received_bytes: int  # since then
    left_bytes: int  # of the kept ones


async def fill_spool_disk(scenario: FailoverScenario, server: Postgres, seconds: float = 300) -> FullDisk:
    """Let kept entries fill the disk under the spool, then take the database away until the spool is full."""
    disk = scenario.spool.parent
    scenario.feed.padding_bytes = PADDING_BYTES
    await until(lambda: shutil.disk_usage(disk).free < LOW_DISK * shutil.disk_usage(disk).total, seconds)
    await scenario.receive_for(3)
    await scenario.wait_until_drained()
    assert states(scenario.daemon) == {"live"}, scenario.daemon.stderr
    before = scenario.daemon.status["spool"]
    scenario.expect_gap()
    await asyncio.to_thread(server.stop)
    await until(lambda: "spool_full" in states(scenario.daemon), seconds)
    full = scenario.daemon.status["spool"]
    await asyncio.to_thread(server.start)
    scenario.feed.padding_bytes = 0
    await scenario.wait_for_return()
    return FullDisk(kept_bytes=before["kept_bytes"], received_bytes=full["bytes"], left_bytes=full["kept_bytes"])
