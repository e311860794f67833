"""Measure what a failover or a restored database costs: ``python -m tests.tools.failover [--quick] [--only ROW…]``.

Every row inflicts one fault on real servers and daemons under load, compares what the daemon has acknowledged after
its fsync with the tables, by plain drivers, and prints goal and figure. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support import failover_measures as measures
from ..support.failover_measures import DATABASE
from ..support.failover_scenario import FailoverScenario
from ..support.faulty_disks import small_disk
from ..support.faulty_simulator import FaultySimulator
from ..support.fork_server import ForkServer
from ..support.postgres_cluster import PostgresCluster, own_cluster
from ..support.postgres_server import Postgres, find_binaries, own_server
from .benchmarks.environment import POSTGRES, open_environment
from .benchmarks.meter import CLIENT
from .benchmarks.throughput_measures import Throughput

NOTHING_LOST = "0 missing, 0 twice, 0 gaps, audit 0"
WRITING_SECONDS = 15
TAKEOVER_SECONDS = 30
MEBIBYTE = 1 << 20
DISK_BYTES = 96 * MEBIBYTE  # a third of which is the spool's ballast
MAX_COST_PERCENT = 3
MAX_MEMORY_PERCENT = 3
KEEPS = ("", "keep: {size: 0B}")  # the default, and nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every row needs. ``seconds`` is how far the database goes back, ``rate`` the events per second."""

    fork_server: ForkServer
    binaries: Path
    folder: Path
    seconds: float
    rate: float
    times: int
    pairs: int
    events: int

    def cluster(self) -> AbstractContextManager[PostgresCluster]:
        return own_cluster(self.binaries, fsync=True)

    def server(self) -> AbstractContextManager[Postgres]:
        return own_server(self.binaries, fsync=True)

    def scenario(self, url: str, **sections: dict[str, Any]) -> FailoverScenario:
        return FailoverScenario(self.fork_server, self.folder, url, rate=self.rate, one_row=True, **sections)


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table."""

    fault: str
    goal: str
    measured: str
    reached: bool


async def losses_after(scenario: FailoverScenario, seconds: float, fault: str, *, hosts: int = 1) -> Figure:
    """Return the line of a fault after which nothing may be missing."""
    await scenario.receive_for(2)
    assert scenario.daemon.status, "the daemon has ended:\n" + scenario.daemon.stderr[-2000:]
    rate = scenario.event_rate
    losses = await scenario.measure_losses(hosts)
    reached = losses.none and seconds <= WRITING_SECONDS
    return Figure(
        fault,
        f"{NOTHING_LOST}; writes within {WRITING_SECONDS} s",
        f"{losses}; wrote after {seconds:.1f} s; {rate:.0f} events/s",
        reached,
    )


async def measure_failover(setting: Setting) -> list[Figure]:
    with setting.cluster() as cluster:
        cluster.create_database(DATABASE)
        async with setting.scenario(cluster.url(DATABASE)) as scenario:
            seconds = await measures.fail_over_to_lagging_standby(scenario, cluster, setting.seconds)
            return [await losses_after(scenario, seconds, f"primary killed, standby {setting.seconds:g} s behind")]


async def measure_restored_postgres(setting: Setting, *, running: bool) -> list[Figure]:
    with setting.server() as server:
        server.execute(f"CREATE DATABASE {DATABASE}")
        async with setting.scenario(server.url(DATABASE)) as scenario:
            seconds = await measures.restore_postgres(scenario, server, setting.seconds, running=running)
            return [await losses_after(scenario, seconds, _restored("PostgreSQL", setting, running=running))]


async def measure_restored_sqlite(setting: Setting, *, running: bool) -> list[Figure]:
    file = setting.folder / "ingestor.db"
    async with setting.scenario(f"sqlite:///{file}") as scenario:
        seconds = await measures.restore_sqlite(scenario, file, setting.seconds, running=running)
        return [await losses_after(scenario, seconds, _restored("SQLite", setting, running=running))]


def _restored(database: str, setting: Setting, *, running: bool) -> str:
    return f"{database} restored from a copy {setting.seconds:g} s old, daemon {'running' if running else 'stopped'}"


async def measure_repeated_failovers(setting: Setting) -> list[Figure]:
    with setting.cluster() as cluster:
        cluster.create_database(DATABASE)
        async with setting.scenario(cluster.url(DATABASE)) as scenario:
            pick = random.Random(0)
            seconds = await measures.fail_over_repeatedly(scenario, cluster, pick, setting.times)
            return [await losses_after(scenario, seconds, f"{setting.times} failovers, kills of the daemon between")]


async def measure_lost_host(setting: Setting) -> list[Figure]:
    with setting.server() as server:
        server.execute(f"CREATE DATABASE {DATABASE}")
        async with setting.scenario(server.url(DATABASE)) as scenario:
            lost = setting.folder / "lost"
            seconds = await measures.lose_host(scenario, setting.fork_server, server, lost, setting.seconds)
            fault = f"one of two hosts lost with its spool, database away for {setting.seconds:g} s"
            return [await losses_after(scenario, seconds, fault, hosts=2)]


async def measure_takeover(setting: Setting) -> list[Figure]:
    async with FaultySimulator(cadence_seconds=1, window_seconds=120) as provider:
        with setting.server() as server:
            server.execute(f"CREATE DATABASE {DATABASE}")
            found = await measures.take_over(setting.fork_server, provider, setting.folder, server.url(DATABASE))
    fault = "receiver killed, the stand-by takes over"
    gap = f"{found.gap_seconds:.1f} s on record, healed after {found.healed_seconds:.0f} s"
    return [
        Figure(fault, f"within {TAKEOVER_SECONDS} s", f"{found.seconds:.1f} s", found.seconds <= TAKEOVER_SECONDS),
        Figure("the gap of it", "on record, then healed", gap, found.gap_seconds > 0),
        Figure("rows of that gap", "0 missing", f"{found.missing} seconds missing", found.missing == 0),
    ]


async def measure_full_disk(setting: Setting) -> list[Figure]:
    with small_disk(setting.folder / "disk", DISK_BYTES) as disk, setting.server() as server:
        server.execute(f"CREATE DATABASE {DATABASE}")
        async with setting.scenario(server.url(DATABASE), spool={"path": str(disk / "spool")}) as scenario:
            found = await measures.fill_spool_disk(scenario, server)
            figure = await losses_after(scenario, 0, "the same, once both are back")
    kept, received, left = (size / MEBIBYTE for size in (found.kept_bytes, found.received_bytes, found.left_bytes))
    measured = f"{received:.1f} MiB received where {kept:.1f} MiB were kept, {left:.1f} MiB of these left"
    fault = "disk full of kept entries, database away until the spool is full"
    return [Figure(fault, "kept entries go first", measured, received > kept / 2 and left < 1), figure]


async def measure_cost(setting: Setting) -> list[Figure]:
    """Compare a daemon that keeps with one that does not, in alternating pairs."""
    costs: dict[str, list[float]] = defaultdict(list)  # a figure with keeping, as a multiple of the one without
    with setting.server() as server:
        for number in range(setting.pairs):
            order = KEEPS if number % 2 == 0 else KEEPS[::-1]
            found = {keep: _measure_throughput(setting, server, keep) for keep in order}
            for name, with_keep in found[KEEPS[0]].items():
                costs[name].append(with_keep / found[KEEPS[1]][name])
    percent = {name: 100 * (statistics.median(ratios) - 1) for name, ratios in costs.items()}
    rate, used, memory = percent[""], percent[CLIENT], percent["peak MiB"]
    return [
        Figure(
            f"keeping, {setting.pairs} pairs of {setting.events} events",
            f"at most {MAX_COST_PERCENT} % of throughput",
            f"{rate:+.1f} % events/s, {used:+.1f} % processor each",
            rate >= -MAX_COST_PERCENT,
        ),
        Figure(
            "its memory",
            f"at most {MAX_MEMORY_PERCENT} %",
            f"{memory:+.1f} % at the peak",
            memory <= MAX_MEMORY_PERCENT,
        ),
    ]


def _measure_throughput(setting: Setting, server: Postgres, keep: str) -> dict[str, float]:
    with open_environment(POSTGRES, server) as environment:
        return Throughput(setting.events, spool_settings=keep)(environment)


ROWS: dict[str, Callable[[Setting], Awaitable[list[Figure]]]] = {
    "failover": measure_failover,
    "restored-postgres-running": lambda setting: measure_restored_postgres(setting, running=True),
    "restored-postgres-stopped": lambda setting: measure_restored_postgres(setting, running=False),
    "restored-sqlite-running": lambda setting: measure_restored_sqlite(setting, running=True),
    "restored-sqlite-stopped": lambda setting: measure_restored_sqlite(setting, running=False),
    "repeated": measure_repeated_failovers,
    "lost-host": measure_lost_host,
    "takeover": measure_takeover,
    "full-disk": measure_full_disk,
    "cost": measure_cost,
}


def measure(name: str, setting: Setting) -> list[Figure]:
    """Measure a row. A fault that the daemon does not survive is a figure as well."""
    started_at = time.monotonic()
    try:
        figures = asyncio.run(ROWS[name](setting))
    except Exception as error:  # must not prevent the other rows
        traceback.print_exc()
        figures = [Figure(name, "", f"{type(error).__name__}: {error}"[:300].replace("\n", " "), reached=False)]
    for figure in figures:
        print(f"[{name}, {time.monotonic() - started_at:.0f} s] {figure.measured}", flush=True)
    return figures


def table(figures: list[Figure]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| fault | goal | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {figure.fault} | {figure.goal} | {figure.measured} | {'reached' if figure.reached else 'MISSED'} |"
        for figure in figures
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.failover", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"only these rows: {', '.join(ROWS)}")
    parser.add_argument("--seconds", type=float, help="how far the database goes back (default 110; quick 8)")
    parser.add_argument("--rate", type=float, help="events per second (default 1000; quick 300)")
    parser.add_argument("--times", type=int, help="failovers in a row (default 20; quick 4)")
    parser.add_argument("--quick", action="store_true", help="a short look: some three minutes instead of half an hour")
    options = parser.parse_args()
    seconds, rate, times = (8.0, 300.0, 4) if options.quick else (110.0, 1000.0, 20)
    pairs, events = (1, 30_000) if options.quick else (7, 100_000)
    binaries = find_binaries()
    if binaries is None:
        sys.exit("PostgreSQL: install it, or set INGESTOR_TEST_PG_BIN (folder)")
    figures = []
    with ForkServer() as fork_server:
        for name in options.only or ROWS:
            with tempfile.TemporaryDirectory() as folder:
                setting = Setting(
                    fork_server=fork_server,
                    binaries=binaries,
                    folder=Path(folder),
                    seconds=options.seconds or seconds,
                    rate=options.rate or rate,
                    times=options.times or times,
                    pairs=pairs,
                    events=events,
                )
                figures += measure(name, setting)
    print(f"\n{table(figures)}")
    return not all(figure.reached for figure in figures)


if __name__ == "__main__":
    sys.exit(main())
