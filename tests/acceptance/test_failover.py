"""A database that goes back in time under a daemon: what it lacks then is written again, once, and nothing is missing.

``python -m tests.tools.failover`` measures the same at length.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ..support import failover_measures as measures
from ..support.failover_measures import DATABASE
from ..support.failover_scenario import FailoverScenario
from ..support.faulty_disks import small_disk
from ..support.faulty_simulator import FaultySimulator
from ..support.fork_server import ForkServer
from ..support.postgres_cluster import PostgresCluster
from ..support.postgres_server import Postgres

LAG_SECONDS = 2
FAILOVERS = 20
SPOOL_DISK_BYTES = 96 << 20
TAKEOVER_SECONDS = 30


@pytest.fixture
def url(postgres: Postgres) -> str:
    """An empty database on a server of the test's own."""
    postgres.execute(f"CREATE DATABASE {DATABASE}")
    return postgres.url(DATABASE)


async def assert_nothing_lost(scenario: FailoverScenario, hosts: int = 1) -> None:
    losses = await scenario.measure_losses(hosts)
    print(losses)
    assert losses.none, scenario.daemon.stderr


@pytest.mark.postgres
async def test_failover_to_lagging_standby_loses_and_duplicates_nothing(
    fork_server: ForkServer, postgres_cluster: PostgresCluster, tmp_path: Path
) -> None:
    postgres_cluster.create_database(DATABASE)
    async with FailoverScenario(fork_server, tmp_path, postgres_cluster.url(DATABASE)) as scenario:
        await measures.fail_over_to_lagging_standby(scenario, postgres_cluster, LAG_SECONDS)
        await assert_nothing_lost(scenario)
    assert '"rewound"' in scenario.daemon.stderr


async def test_sqlite_file_replaced_by_older_copy_under_daemon_loses_nothing(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    file = tmp_path / "ingestor.db"
    async with FailoverScenario(fork_server, tmp_path, f"sqlite:///{file}") as scenario:
        await measures.restore_sqlite(scenario, file, LAG_SECONDS, running=True)
        await assert_nothing_lost(scenario)


@pytest.mark.slow
async def test_sqlite_file_restored_between_two_runs_loses_nothing(fork_server: ForkServer, tmp_path: Path) -> None:
    file = tmp_path / "ingestor.db"
    async with FailoverScenario(fork_server, tmp_path, f"sqlite:///{file}") as scenario:
        await measures.restore_sqlite(scenario, file, LAG_SECONDS, running=False)
        await assert_nothing_lost(scenario)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("running", [True, False], ids=["daemon running", "daemon stopped"])
async def test_restored_postgres_loses_nothing(
    running: bool, fork_server: ForkServer, postgres: Postgres, url: str, tmp_path: Path
) -> None:
    async with FailoverScenario(fork_server, tmp_path, url) as scenario:
        await measures.restore_postgres(scenario, postgres, LAG_SECONDS, running=running)
        await assert_nothing_lost(scenario)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(1200)
async def test_many_failovers_and_kills_lose_nothing(
    fork_server: ForkServer, postgres_cluster: PostgresCluster, tmp_path: Path
) -> None:
    postgres_cluster.create_database(DATABASE)
    async with FailoverScenario(fork_server, tmp_path, postgres_cluster.url(DATABASE)) as scenario:
        await measures.fail_over_repeatedly(scenario, postgres_cluster, random.Random(0), FAILOVERS)
        await assert_nothing_lost(scenario)


@pytest.mark.slow
@pytest.mark.postgres
async def test_losing_one_of_two_hosts_during_outage_loses_nothing(
    fork_server: ForkServer, postgres: Postgres, url: str, tmp_path: Path
) -> None:
    async with FailoverScenario(fork_server, tmp_path, url) as scenario:
        await measures.lose_host(scenario, fork_server, postgres, tmp_path / "lost", away_seconds=5)
        await assert_nothing_lost(scenario, hosts=2)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(700)
async def test_stand_by_takes_over_and_gap_is_healed(fork_server: ForkServer, url: str, tmp_path: Path) -> None:
    async with FaultySimulator(cadence_seconds=1, window_seconds=120) as provider:
        found = await measures.take_over(fork_server, provider, tmp_path, url)
    print(found)
    assert found.seconds <= TAKEOVER_SECONDS
    assert found.missing == 0


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(300)
async def test_kept_entries_make_room_for_new_ones_on_full_disk(
    fork_server: ForkServer, postgres: Postgres, url: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", SPOOL_DISK_BYTES) as disk:
        spool = {"path": str(disk / "spool")}
        async with FailoverScenario(fork_server, tmp_path, url, spool=spool) as scenario:
            found = await measures.fill_spool_disk(scenario, postgres)
            print(found)
            assert found.received_bytes > found.kept_bytes / 2
            assert found.left_bytes < 1 << 20
            await assert_nothing_lost(scenario)


@pytest.mark.slow
@pytest.mark.postgres
async def test_old_primary_that_comes_back_is_not_written_to(
    fork_server: ForkServer, postgres_cluster: PostgresCluster, tmp_path: Path
) -> None:
    """It accepts writes, and comes first in the URL of a daemon that has just started."""
    postgres_cluster.create_database(DATABASE)
    async with FailoverScenario(fork_server, tmp_path, postgres_cluster.url(DATABASE)) as scenario:
        await measures.fail_over_to_lagging_standby(scenario, postgres_cluster, LAG_SECONDS)
        old, new = (server.url(DATABASE) for server in (postgres_cluster.standby, postgres_cluster.primary))
        postgres_cluster.standby.start()
        before = measures.read_position(old)
        scenario.kill_daemon()
        await scenario.restart_daemon()
        await scenario.receive_for(LAG_SECONDS)
        scenario.daemon.db.url = new
        await scenario.wait_until_drained()
        assert measures.read_position(old) == before
        await assert_nothing_lost(scenario)
