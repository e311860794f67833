"""Daemons that stand by for each other on one PostgreSQL database: one connects, and another one when that is silent.

The lease is shortened; the test that is marked slow runs with the lease as it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ..support.daemon import until, write_config
from ..support.db_reader import DbReader
from ..support.faulty_simulator import FaultySimulator
from ..support.fork_server import ForkedDaemon, ForkServer
from ..support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.postgres
LEASE_SECONDS, POLL_SECONDS = 4.0, 0.3  # a machine that stands still for two seconds must not end the lease
SHORT_LEASE = {
    "ingestor.daemon.standby.LEASE_SECONDS": LEASE_SECONDS,
    "ingestor.daemon.standby.POLL_SECONDS": POLL_SECONDS,
    "ingestor.daemon.standby.RETRY_SECONDS": 0.2,
    "ingestor.provider.auth.token_source.LOGIN_SPACING_SECONDS": 0.2,
}
EARLY_REPAIR = {"ingestor.daemon.scheduler.FIRST_REPAIR_SECONDS": 0.5, "ingestor.daemon.scheduler.REPAIR_SECONDS": 0.5}
NO_REPAIR = {"ingestor.daemon.scheduler.FIRST_REPAIR_SECONDS": 3600.0}  # so that it never holds the lease for that
REAL_TIME = {"interval_seconds": 0.1, "step_seconds": 0.1, "cadence_seconds": 1, "started_at": None}
PATH = "/real-time/crowd-sentiment"


@dataclass
class Host:
    """A daemon, the proxy through which it reaches the provider, and the one through which it reaches PostgreSQL."""

    daemon: ForkedDaemon
    provider: TcpProxy
    postgres: TcpProxy

    @property
    def role(self) -> str:
        return str((self.daemon.status.get("standby") or {}).get("role", ""))

    @property
    def states(self) -> set[str]:
        return {subscription["state"] for subscription in self.daemon.status.get("subscriptions", ())}

    @property
    def is_live(self) -> bool:
        return self.states == {"live"}

    def cut_off_from_database(self) -> None:
        self.postgres.refusing = True
        self.postgres.cut()


AddHost = Callable[..., Any]


@pytest.fixture
async def provider(make_simulator: Callable[..., Any]) -> FaultySimulator:
    """A provider whose time is ours, with a value per second."""
    simulator: FaultySimulator = await make_simulator(**REAL_TIME)
    return simulator


@pytest.fixture
async def add_host(
    fork_server: ForkServer,
    provider: FaultySimulator,
    postgres_url: str,
    tmp_path: Path,
    tcp_proxy: Callable[[str], Any],
) -> AsyncIterator[AddHost]:
    """`await add_host("a", **constants)`: a daemon that was started on a host of its own, and is killed at the end."""
    hosts: list[Host] = []

    async def add(name: str, key: str = "", **constants: Any) -> Host:
        to_provider, to_postgres = await tcp_proxy(provider.url), await tcp_proxy(postgres_url)
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(
            folder,
            url=to_provider.url,
            database_url=f"{to_postgres.url.replace('//', '//ingestor@')}/{postgres_url.rpartition('/')[2]}",
            subscriptions={PATH: ["AAPL", "ON"]},
            provider={"standby": "true"},
        )
        environment = {"INGESTOR_INSTANCE": name, "TEST_CONSTANTS": json.dumps(SHORT_LEASE | constants)}
        daemon = ForkedDaemon(fork_server, config, key or provider.api_key, **environment)
        hosts.append(Host(daemon, to_provider, to_postgres))
        daemon.start()
        return hosts[-1]

    yield add
    for host in hosts:
        host.daemon.kill()


async def start_pair(add_host: AddHost, **constants: Any) -> tuple[Host, Host]:
    """Return a daemon that receives, and one that stands by."""
    first = await add_host("a", **{**constants, **NO_REPAIR})
    await first.daemon.wait_until_live()
    second = await add_host("b", **{**constants, **EARLY_REPAIR})
    await until(lambda: second.states == {"standby"})
    return first, second


def newest_facts(db: DbReader, instance: str) -> dict[str, dict[str, Any]]:
    """Return the newest fact of each kind of this instance."""
    query = f"SELECT kind, detail FROM events JOIN instances USING (instance_id) WHERE name = '{instance}' ORDER BY seq"
    return {row["kind"]: json.loads(row["detail"]) for row in db.rows(query)}


async def test_standby_takes_over_from_killed_receiver_and_heals_the_gap(add_host: AddHost, postgres_url: str) -> None:
    first, second = await start_pair(add_host)
    assert second.daemon.get("/readyz")[0] == second.daemon.get("/healthz")[0] == 200
    assert "ingestor_standing_by 1.0" in second.daemon.get("/metrics")[1]
    assert second.provider.accepted == 0, "no login, no connection, no repair"
    killed_at = time.monotonic()
    first.daemon.kill()
    await until(lambda: second.is_live)
    print(f"live {time.monotonic() - killed_at:.2f} s after the kill, with a lease of {LEASE_SECONDS} s")

    db = DbReader(postgres_url)
    found = await until(lambda: (facts := newest_facts(db, "b")) and "repaired" in facts and facts)
    assert found["standing_by"]["reason"] == "instance 1 (a) receives"
    assert (found["took_over"]["instance_id"], found["took_over"]["name"]) == (1, "a")
    assert 0 < found["took_over"]["silent_seconds"] < 15
    await until(lambda: not db.rows("SELECT * FROM gaps"))
    states = db.column(
        "SELECT state FROM coverage JOIN instances USING (instance_id) JOIN subscriptions USING (subscription_id)"
        " WHERE name = 'b' AND ticker = 'ON' ORDER BY start_seq"
    )
    assert states[states.index("standby") :] == ["standby", "pending", "live"]
    healed = db.rows("SELECT new_rows FROM repairs WHERE state = 'done' ORDER BY to_ts DESC LIMIT 2")
    assert all(repair["new_rows"] > 0 for repair in healed)
    assert await second.daemon.terminate() == 0
    db.assert_consistent()


async def test_receiver_that_is_cut_off_from_the_database_opens_no_connection(
    add_host: AddHost, provider: FaultySimulator, postgres_url: str
) -> None:
    first, second = await start_pair(add_host)
    opened = first.provider.accepted
    first.cut_off_from_database()
    await until(lambda: second.is_live)
    await until(lambda: first.role == "waiting")
    assert first.is_live, "what is open stays open"
    assert first.daemon.get("/readyz")[0] == 503
    first.provider.cut()
    await until(lambda: first.states == {"disconnected"})
    await asyncio.sleep(LEASE_SECONDS)  # longer than the pause before a connection is opened again
    first.postgres.refusing = False
    await until(lambda: first.states == {"standby"})
    assert first.provider.accepted == opened
    assert len(provider.connections) == 1
    db = DbReader(postgres_url)
    found = await until(lambda: (facts := newest_facts(db, "a")) and "standing_by" in facts and facts)
    assert found["standing_by"]["reason"] == "instance 2 (b) receives"
    assert found["lease_expired"]["reason"].startswith(f"not renewed for {LEASE_SECONDS:g} s: ")


async def test_stopped_receiver_hands_over_within_seconds(add_host: AddHost, postgres_url: str) -> None:
    first, second = await start_pair(add_host, **{"ingestor.daemon.standby.LEASE_SECONDS": 60.0})
    stopped_at = time.monotonic()
    first.daemon.send_sigterm()
    await until(lambda: second.is_live)
    print(f"live {time.monotonic() - stopped_at:.2f} s after SIGTERM, with a lease of 60 s")
    assert await first.daemon.wait_for_exit() == 0
    first.daemon.start()
    await until(lambda: first.states == {"standby"})  # it hands nothing back
    assert second.is_live


@pytest.mark.slow
async def test_receiver_that_was_stopped_for_long_closes_its_connection(
    add_host: AddHost, provider: FaultySimulator
) -> None:
    first, second = await start_pair(add_host)
    opened = first.provider.accepted
    os.kill(first.daemon.pid, signal.SIGSTOP)
    await until(lambda: second.is_live)
    assert len(provider.connections) == 2  # that of a process that is stopped stays open
    os.kill(first.daemon.pid, signal.SIGCONT)
    await until(lambda: first.states == {"standby"})
    await until(lambda: len(provider.connections) == 1)
    assert second.is_live
    assert first.provider.accepted == opened


@pytest.mark.slow
async def test_one_daemon_receives_after_a_database_outage(
    add_host: AddHost, provider: FaultySimulator, postgres_url: str
) -> None:
    first, second = await start_pair(add_host)
    opened = first.provider.accepted, second.provider.accepted
    for host in (first, second):
        host.cut_off_from_database()
    await until(lambda: (first.role, second.role) == ("waiting", "waiting"))
    assert second.daemon.get("/readyz")[0] == 503
    await asyncio.sleep(LEASE_SECONDS)
    for host in (first, second):
        host.postgres.refusing = False
    await until(lambda: "receiver" in (first.role, second.role))
    await until(lambda: "standby" in (first.role, second.role))
    receiver = first if first.role == "receiver" else second
    await until(lambda: receiver.is_live)
    if receiver is first:
        assert (first.provider.accepted, second.provider.accepted) == opened
    await until(lambda: len(provider.connections) == 1)


@pytest.mark.slow
async def test_receiver_closes_when_the_database_went_back_to_a_lease_of_another(
    add_host: AddHost, provider: FaultySimulator, postgres_url: str
) -> None:
    first, second = await start_pair(add_host)
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("UPDATE leases SET instance_id = 2, until = now() + interval '1 s' WHERE name = 'receiver'")
    await until(lambda: second.is_live)
    await until(lambda: first.states == {"standby"})
    await until(lambda: len(provider.connections) == 1)
    assert (first.role, second.role) == ("standby", "receiver")


@pytest.mark.slow
async def test_of_three_daemons_that_start_together_one_receives_at_a_time(
    add_host: AddHost, provider: FaultySimulator
) -> None:
    hosts = [await add_host(name) for name in "abc"]
    while len(hosts) > 1:
        await until(lambda: sorted(host.role for host in hosts) == ["receiver"] + ["standby"] * (len(hosts) - 1))
        (receiver,) = [host for host in hosts if host.role == "receiver"]
        await until(lambda receiver=receiver: receiver.is_live)
        assert len(provider.connections) == 1
        assert all(host.provider.accepted == 0 for host in hosts if host is not receiver)
        hosts.remove(receiver)
        receiver.daemon.kill()
        await until(lambda: not provider.connections)
    await until(lambda: hosts[0].is_live)


@pytest.mark.slow
async def test_receiver_whose_key_is_refused_gives_the_lease_to_another(add_host: AddHost, postgres_url: str) -> None:
    refused = await add_host("a", key="wrong", **{"ingestor.daemon.standby.YIELD_SECONDS": 1.0})
    await until(lambda: refused.role == "receiver")
    second = await add_host("b")
    await until(lambda: second.is_live)
    await until(lambda: refused.role == "standby")
    assert refused.daemon.get("/readyz")[0] == 200
    found = newest_facts(DbReader(postgres_url), "a")
    assert found["lease_yielded"]["reason"].startswith("no connection to the provider for ")


@pytest.mark.slow
async def test_takeover_takes_30_seconds_at_most_with_the_lease_as_it_is(add_host: AddHost) -> None:
    real = dict(zip(SHORT_LEASE, (15.0, 5.0, 1.0, 5.0), strict=True))
    first, second = await start_pair(add_host, **real)
    killed_at = time.monotonic()
    first.daemon.kill()
    await until(lambda: second.is_live, 40)
    seconds = time.monotonic() - killed_at
    print(f"live {seconds:.1f} s after the kill, with a lease of 15 s")
    assert seconds < 30
