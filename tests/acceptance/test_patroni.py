"""Fail over a cluster under Patroni: whatever it loses, the daemon writes again, and continues without a restart.

`pytest -m patroni -s` shows the figures. It takes some minutes: a leader's lock expires after twenty seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ..support.daemon import until
from ..support.failover_measures import read_position
from ..support.failover_scenario import FailoverScenario
from ..support.fork_server import ForkServer
from ..support.patroni_cluster import PatroniCluster, PatroniNode, own_patroni_cluster

pytestmark = [pytest.mark.slow, pytest.mark.patroni, pytest.mark.timeout(600)]

DATABASE = "ingestor"
RATE = 1000
LAG_SECONDS = 10
LEADER_SECONDS = 120
WRITING_SECONDS = 15


@pytest.fixture(scope="module")
def cluster() -> Iterator[PatroniCluster]:
    with own_patroni_cluster() as running:
        yield running


@pytest.fixture
def mode(request: pytest.FixtureRequest, cluster: PatroniCluster) -> str:
    """The mode of replication, of a cluster that is whole when the test begins."""
    cluster.make_whole()
    cluster.set_synchronous(request.param == "synchronous")
    return str(request.param)


both_modes = pytest.mark.parametrize("mode", ["asynchronous", "synchronous"], indirect=True)


class Watch:
    """Measures from now on when another node leads, and when the daemon has written there."""

    def __init__(self, cluster: PatroniCluster) -> None:
        self._cluster = cluster
        self._old = cluster.leader
        self._started_at = time.monotonic()
        self.writing_seconds = 0.0  # since the new leader accepts writes

    async def wait_for_leader(self, *, may_stay: bool = False) -> PatroniNode:
        """Wait until another node leads, or any if the old one ``may_stay``, and return it."""
        await asyncio.to_thread(self._wait_for_leader, None if may_stay else self._old)
        self._led_at = time.monotonic()
        return self._cluster.leader

    async def wait_for_writing(self, leader: PatroniNode) -> str:
        """Wait until something more is committed on this node, and return the figures as a text."""
        since = read_position(leader.url(DATABASE))
        await until(lambda: read_position(leader.url(DATABASE)) > since, 60)
        self.writing_seconds = time.monotonic() - self._led_at
        led_seconds = self._led_at - self._started_at
        change = f"{self._old.name} led; {leader.name} accepts writes after {led_seconds:.1f} s"
        return f"{change}, written {self.writing_seconds:.1f} s later"

    def _wait_for_leader(self, but: PatroniNode | None) -> None:
        deadline = time.monotonic() + LEADER_SECONDS
        while not self._cluster.has_leader(but):
            assert time.monotonic() < deadline, "no node leads"
            time.sleep(0.05)


@asynccontextmanager
async def daemon_on(cluster: PatroniCluster, fork_server: ForkServer, folder: Path) -> AsyncIterator[FailoverScenario]:
    """Run a daemon on an empty database, and assert at the end that nothing is missing."""
    cluster.leader.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    cluster.leader.execute(f"CREATE DATABASE {DATABASE}")
    async with FailoverScenario(fork_server, folder, cluster.url(DATABASE), rate=RATE, one_row=True) as scenario:
        await scenario.receive_for(3)
        yield scenario
        await scenario.receive_for(3)
        assert scenario.daemon.status, scenario.daemon.stderr
        losses = await scenario.measure_losses()
        print(losses)
        assert losses.none, scenario.daemon.stderr


@both_modes
async def test_lost_leader_costs_nothing_and_comes_back(
    request: pytest.FixtureRequest, mode: str, cluster: PatroniCluster, fork_server: ForkServer, tmp_path: Path
) -> None:
    """The leader's machine is lost. In asynchronous mode, its standbys are behind by then."""
    old = cluster.leader
    async with daemon_on(cluster, fork_server, tmp_path) as scenario:
        if mode == "asynchronous":
            old.cut()
            await scenario.receive_for(LAG_SECONDS)
        committed, watch = read_position(old.url(DATABASE)), Watch(cluster)
        old.kill()
        leader = await watch.wait_for_leader()
        figures = await watch.wait_for_writing(leader)
        print(f"\n{request.node.name}: {figures}; {committed} entries were committed before\n{rewound(scenario)}")
        old.start()
        await asyncio.to_thread(cluster.make_whole)
        print(f"{old.name} is a standby again")
    assert ("rewound" in scenario.daemon.stderr) == (mode == "asynchronous")
    assert watch.writing_seconds <= WRITING_SECONDS


@both_modes
async def test_killed_postgres_of_the_leader_costs_nothing(
    request: pytest.FixtureRequest, mode: str, cluster: PatroniCluster, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Its Patroni lives, and starts it again or hands over."""
    async with daemon_on(cluster, fork_server, tmp_path) as scenario:
        watch = Watch(cluster)
        cluster.leader.kill_postgres()
        leader = await watch.wait_for_leader(may_stay=True)
        print(f"\n{request.node.name}: {await watch.wait_for_writing(leader)}\n{rewound(scenario)}")
    assert watch.writing_seconds <= WRITING_SECONDS


@both_modes
async def test_switchover_costs_nothing(
    request: pytest.FixtureRequest, mode: str, cluster: PatroniCluster, fork_server: ForkServer, tmp_path: Path
) -> None:
    async with daemon_on(cluster, fork_server, tmp_path) as scenario:
        watch = Watch(cluster)
        await asyncio.to_thread(cluster.switch_over)
        leader = await watch.wait_for_leader()
        print(f"\n{request.node.name}: {await watch.wait_for_writing(leader)}\n{rewound(scenario)}")
    assert watch.writing_seconds <= WRITING_SECONDS


def rewound(scenario: FailoverScenario) -> str:
    """Return the daemon's log lines about entries that it writes again."""
    return "\n".join(line for line in scenario.daemon.stderr.splitlines() if '"rewound"' in line)
