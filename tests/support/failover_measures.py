"""Faults after which a database is behind its daemons, each as a function that inflicts and measures it.

Each is called with a running scenario, whose feed goes on sending, and returns seconds.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from .daemon import until, write_config
from .db_reader import DbReader
from .failover_scenario import FailoverScenario
from .fork_server import ForkedDaemon, ForkServer
from .numbered_feed import KEY, PATH, TICKERS
from .postgres_cluster import PostgresCluster
from .postgres_server import Postgres

DATABASE = "ingestor"
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
    cluster.promote()
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
    """Fail over to a standby that lags, again and again, with a kill of the daemon before, during or after each.

    The seconds are those of the slowest of the failovers that the daemon survived.
    """
    slowest = 0.0
    for number in range(times):
        cluster.cut()
        await scenario.receive_for(pick.uniform(0.5, 3))
        kill_at = ("before", "during", "after", "never")[number % 4]
        if kill_at in ("before", "during"):
            scenario.kill_daemon()
        if kill_at == "before":
            await scenario.restart_daemon()
        if kill_at == "during":
            await fail_over_without_daemon(scenario, cluster)
        else:
            slowest = max(slowest, await fail_over(cluster))
        if kill_at == "after":  # likely while it writes entries again
            scenario.kill_daemon()
            await scenario.restart_daemon()
        cluster.rebuild()
        await scenario.receive_for(pick.uniform(0.1, 1))
    return slowest


async def fail_over_without_daemon(scenario: FailoverScenario, cluster: PostgresCluster) -> None:
    """Fail over while the daemon, which was killed, starts."""
    scenario.daemon.start()
    cluster.kill_primary()
    cluster.promote()
    await scenario.wait_for_return()


async def restore_postgres(scenario: FailoverScenario, server: Postgres, age_seconds: float, *, running: bool) -> float:
    """Restore the server from a copy of this age, while the daemon runs or is stopped."""
    await scenario.wait_until_drained()
    backup = server.backup()
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
    restore()
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
        server.start()
    return await wait_until_writing(url, read_position(url))
