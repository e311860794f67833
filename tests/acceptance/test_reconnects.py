"""Time to detect a lost connection, time to be live again, and the cost of a server that keeps closing connections."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingestor.provider.catalog import FEEDS, PATHS, base_name
from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import DaemonProcess, until, write_config
from ..support.fork_server import ForkedDaemon, ForkServer
from ..support.process_usage import cpu_seconds

# One connection for each path, so that one event gives as many samples.
SUBSCRIPTIONS = {path: ["AAPL"] for path in PATHS if path.startswith("/") and not FEEDS[base_name(path)].by_user}
MAX_RECOVERY_SECONDS = 2  # median, from the moment when the server listens again
MAX_STANDSTILL_SECONDS = 2  # of a busy machine, where it is not in one restart of many
STORM_SECONDS = 60
MAX_CPU_PERCENT = 5


def config_for(folder: Path, url: str) -> Path:
    return write_config(
        folder, url=url, database_url=f"sqlite:///{folder / 'ingestor.db'}", subscriptions=SUBSCRIPTIONS
    )


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "restarts", "between_seconds", "max_seconds"),
    [
        pytest.param("4", 1, 0, MAX_RECOVERY_SECONDS + MAX_STANDSTILL_SECONDS),
        # Sessions long enough to count as healthy, as is usual.
        *[
            pytest.param(generation, 9, 32, MAX_RECOVERY_SECONDS, marks=[pytest.mark.slow, pytest.mark.timeout(600)])
            for generation in ("1.0", "2", "4")
        ],
    ],
)
async def test_all_is_live_within_two_seconds_of_a_server_restart(
    fork_server: ForkServer,
    make_node_server: Any,
    tmp_path: Path,
    generation: str,
    restarts: int,
    between_seconds: float,
    max_seconds: float,
) -> None:
    server = await make_node_server(generation)
    restarted_at: list[datetime] = []
    async with ForkedDaemon(fork_server, config_for(tmp_path, server.url), server.api_key) as daemon:
        for number in range(restarts):
            await daemon.wait_until_live()
            await asyncio.sleep(between_seconds)
            await (server.kill() if number % 2 else server.stop())
            await server.start()
            restarted_at.append(datetime.now(UTC))
            await until(lambda: server.count("subscribed") == (len(restarted_at) + 1) * len(SUBSCRIPTIONS))
        await daemon.wait_until_live()
        assert await daemon.terminate() == 0
    waits = [
        (at - max(restart for restart in restarted_at if restart < at)).total_seconds()
        for at in live_since(daemon, restarted_at[0])
    ]
    print(f"{len(waits)} connections live again after {summary(waits)} s")
    assert len(waits) == restarts * len(SUBSCRIPTIONS)
    assert statistics.median(waits) < max_seconds


def live_since(daemon: DaemonProcess, since: datetime) -> list[datetime]:
    """When subscriptions became live after that moment, according to coverage."""
    starts = daemon.db.column("SELECT started_at FROM coverage WHERE state = 'live'")
    return [at for at in starts if at > since]


def summary(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} (median), {min(seconds):.2f} to {max(seconds):.2f}"


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "ping_seconds"),
    [
        pytest.param("4", (0.6, 0.4)),
        *[pytest.param(generation, (25, 20), marks=pytest.mark.slow) for generation in ("1.0", "2", "4")],
        pytest.param("0.9", (25, 60), marks=pytest.mark.slow),
    ],
)
async def test_half_open_connection_is_detected_within_ping_limits(
    fork_server: ForkServer,
    make_node_server: Any,
    tcp_proxy: Any,
    tmp_path: Path,
    generation: str,
    ping_seconds: tuple[float, float],
) -> None:
    server = await make_node_server(
        generation, ping_interval_seconds=ping_seconds[0], ping_timeout_seconds=ping_seconds[1]
    )
    proxy = await tcp_proxy(server.url)
    async with ForkedDaemon(fork_server, config_for(tmp_path, proxy.url), server.api_key) as daemon:
        await daemon.wait_until_live()
        half_open_at = datetime.now(UTC)
        proxy.half_open = True
        await until(lambda: len(detected_at(daemon)) >= len(SUBSCRIPTIONS), sum(ping_seconds) + 10)
        assert await daemon.terminate() == 0
    waits = [(at - half_open_at).total_seconds() for at in detected_at(daemon)[: len(SUBSCRIPTIONS)]]
    print(f"{len(waits)} half-open connections detected after {summary(waits)} s")
    assert max(waits) < sum(ping_seconds) + 1 + MAX_STANDSTILL_SECONDS


def detected_at(daemon: DaemonProcess) -> list[datetime]:
    """When each half-open connection was detected, in order."""
    query = "SELECT at AS detected_at FROM events WHERE kind = 'disconnected' AND detail LIKE '%\"mute\"%' ORDER BY seq"
    return daemon.db.column(query)


# Servers that keep closing connections.


async def kick_at_once(simulator: FaultySimulator) -> None:
    await simulator.kick()
    await asyncio.sleep(0.01)


async def restart_every_few_seconds(simulator: FaultySimulator) -> None:
    await asyncio.sleep(3)
    await simulator.stop()
    await asyncio.sleep(0.5)
    await simulator.start()


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [kick_at_once, restart_every_few_seconds])
async def test_server_that_ends_every_connection_costs_little_cpu(
    fork_server: ForkServer, make_simulator: Any, tmp_path: Path, disturb: Callable[[FaultySimulator], Awaitable[None]]
) -> None:
    simulator = await make_simulator(interval_seconds=1)
    async with ForkedDaemon(fork_server, config_for(tmp_path, simulator.url), simulator.api_key) as daemon:
        await daemon.wait_until_live()
        over = asyncio.Event()
        storm = asyncio.create_task(disturb_until(over, disturb, simulator))
        await asyncio.sleep(5)  # after which the backoff has grown
        before, handshakes, began = cpu_seconds(daemon.pid), simulator.handshakes, time.monotonic()
        await asyncio.sleep(STORM_SECONDS)
        percent = 100 * (cpu_seconds(daemon.pid) - before) / (time.monotonic() - began)
        over.set()
        await storm
        print(f"{percent:.1f} % of a core; {simulator.handshakes - handshakes} connections of {len(SUBSCRIPTIONS)}")
        assert await daemon.terminate() == 0
    assert percent < MAX_CPU_PERCENT
    assert simulator.login_attempts == 1


async def disturb_until(
    over: asyncio.Event, disturb: Callable[[FaultySimulator], Awaitable[None]], simulator: FaultySimulator
) -> None:
    while not over.is_set():
        await disturb(simulator)
