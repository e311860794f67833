"""How soon the daemon notices that nobody is there, how soon it is back, and what it costs if that goes on for ever."""

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
from ingestor.simulator import Simulator

from ..support.daemon import Daemon, until, write_config
from ..support.fork_server import ForkedDaemon, Nursery
from ..support.process_usage import cpu_seconds

# A connection each, so that one event shows as many waits.
WANTED = {path: ["AAPL"] for path in PATHS if path.startswith("/") and not FEEDS[base_name(path)].by_user}
BACK_SECONDS = 2  # median, from the moment when the server listens again
STORM_SECONDS = 60
CPU_PERCENT = 5


def config_for(folder: Path, url: str) -> Path:
    return write_config(folder, url=url, database_url=f"sqlite:///{folder / 'ingestor.db'}", subscriptions=WANTED)


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "restarts", "between_seconds"),
    [
        pytest.param("4", 1, 0),
        # Sessions long enough to count as healthy, as they are in life.
        *[
            pytest.param(generation, 9, 32, marks=[pytest.mark.slow, pytest.mark.timeout(600)])
            for generation in ("1.0", "2", "4")
        ],
    ],
)
async def test_after_a_restart_of_the_server_all_is_live_again_within_two_seconds(
    nursery: Nursery, socketio_peer: Any, tmp_path: Path, generation: str, restarts: int, between_seconds: float
) -> None:
    peer = await socketio_peer(generation)
    up_at: list[datetime] = []
    async with ForkedDaemon(nursery, config_for(tmp_path, peer.url), peer.api_key) as daemon:
        for number in range(restarts):
            await daemon.live()
            await asyncio.sleep(between_seconds)
            await (peer.kill() if number % 2 else peer.stop())
            await peer.start()
            up_at.append(datetime.now(UTC))
            await until(lambda: peer.count("subscribed") == (len(up_at) + 1) * len(WANTED))
        await daemon.live()
        assert await daemon.terminate() == 0
    waits = [(at - max(up for up in up_at if up < at)).total_seconds() for at in live_again(daemon, up_at[0])]
    print(f"{len(waits)} connections live again after {summary(waits)} s")
    assert len(waits) == restarts * len(WANTED)
    assert statistics.median(waits) < BACK_SECONDS


def live_again(daemon: Daemon, since: datetime) -> list[datetime]:
    """When each subscription was live again, as coverage has it, after that moment."""
    starts = daemon.books.column("SELECT started_at FROM coverage WHERE state = 'live'")
    return [at for at in starts if at > since]


def summary(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} (median), {min(seconds):.2f} to {max(seconds):.2f}"


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "ping_seconds"),
    [
        pytest.param("4", (0.6, 0.4)),
        *[pytest.param(generation, (25, 20), marks=pytest.mark.slow) for generation in ("1.0", "2", "4")],
    ],
)
async def test_half_open_connections_are_noticed_within_interval_timeout_and_a_second(
    nursery: Nursery,
    socketio_peer: Any,
    tcp_proxy: Any,
    tmp_path: Path,
    generation: str,
    ping_seconds: tuple[float, float],
) -> None:
    peer = await socketio_peer(generation, ping_interval_seconds=ping_seconds[0], ping_timeout_seconds=ping_seconds[1])
    proxy = await tcp_proxy(peer.url)
    async with ForkedDaemon(nursery, config_for(tmp_path, proxy.url), peer.api_key) as daemon:
        await daemon.live()
        silent_at = datetime.now(UTC)
        proxy.half_open = True
        await until(lambda: len(noticed(daemon)) >= len(WANTED), sum(ping_seconds) + 10)
        assert await daemon.terminate() == 0
    waits = [(at - silent_at).total_seconds() for at in noticed(daemon)[: len(WANTED)]]
    print(f"{len(waits)} half-open connections noticed after {summary(waits)} s")
    assert max(waits) < sum(ping_seconds) + 1


def noticed(daemon: Daemon) -> list[datetime]:
    """When each silence was noticed, the first first."""
    query = "SELECT at AS noticed_at FROM events WHERE kind = 'disconnected' AND detail LIKE '%\"mute\"%' ORDER BY seq"
    return daemon.books.column(query)


# Storms.


async def kick_at_once(simulator: Simulator) -> None:
    await simulator.kick()
    await asyncio.sleep(0.01)


async def restart_every_few_seconds(simulator: Simulator) -> None:
    await asyncio.sleep(3)
    await simulator.stop()
    await asyncio.sleep(0.5)
    await simulator.start()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [kick_at_once, restart_every_few_seconds])
async def test_a_server_that_ends_every_connection_costs_little(
    nursery: Nursery, make_simulator: Any, tmp_path: Path, trouble: Callable[[Simulator], Awaitable[None]]
) -> None:
    simulator = await make_simulator(interval_seconds=1)
    async with ForkedDaemon(nursery, config_for(tmp_path, simulator.url), simulator.api_key) as daemon:
        await daemon.live()
        over = asyncio.Event()
        storm = asyncio.create_task(until_over(trouble, simulator, over))
        await asyncio.sleep(5)  # after which the worst is over in any case
        before, handshakes, began = cpu_seconds(daemon.pid), simulator.handshakes, time.monotonic()
        await asyncio.sleep(STORM_SECONDS)
        percent = 100 * (cpu_seconds(daemon.pid) - before) / (time.monotonic() - began)
        over.set()
        await storm
        print(f"{percent:.1f} % of a core; {simulator.handshakes - handshakes} connections of {len(WANTED)}")
        assert await daemon.terminate() == 0
    assert percent < CPU_PERCENT
    assert simulator.login_attempts == 1


async def until_over(
    trouble: Callable[[Simulator], Awaitable[None]], simulator: Simulator, over: asyncio.Event
) -> None:
    while not over.is_set():
        await trouble(simulator)
