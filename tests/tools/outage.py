"""Measure a long outage of the database: ``python -m tests.tools.outage --minutes 10 --rate 1000 --database postgres``.

A daemon receives one-row events while its database is down, then writes the backlog while more events arrive. Prints
the lost events (none), the drain rate of the spool, the memory over time, and the delay of acknowledgements, which
follow the fsync, before, during and after the outage. Exits with 1 if the drain is slower than ten times the event
rate, or memory grows by more than 64 MiB; with SQLite 128, of which 64 are its page cache.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..support.fork_server import ForkServer
from ..support.outage_scenario import OutageScenario
from ..support.postgres_server import Postgres, find_binaries, own_server
from ..support.process_usage import resident_mib

WARM_SECONDS = 20
SAMPLE_SECONDS = 0.25
PRINT_SECONDS = 10
GROWTH_MIB = 64
PAGES_MIB = 64  # SQLite's page cache in the daemon, which fills as the file grows: see store/engine.py
MIN_DRAIN_FACTOR = 10  # drain rate by event rate


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory and spool of the daemon at one moment."""

    at: float  # time.monotonic()
    mib: float  # resident
    entries: int  # in the spool
    acked: int


class Watch:
    """Samples a daemon and prints some samples; at the end of a phase also the delays of acknowledgements."""

    def __init__(self, scenario: OutageScenario) -> None:
        self._scenario = scenario
        self.samples: list[Sample] = []

    async def for_seconds(self, seconds: float, phase: str) -> None:
        end = time.monotonic() + seconds
        await self.until(phase, lambda sample: sample.at >= end)

    async def until(self, phase: str, condition: Callable[[Sample], bool]) -> None:
        self._scenario.feed.ack_delays.clear()
        while not condition(sample := self._take_sample()):
            self._print(phase, sample)
            await asyncio.sleep(SAMPLE_SECONDS)
        delays = sorted(self._scenario.feed.ack_delays)
        median, p99 = _quantile_ms(delays, 0.5), _quantile_ms(delays, 0.99)
        print(f"{phase}: acknowledged after {median} ms (median), {p99} ms (99 %)")

    def _take_sample(self) -> Sample:
        spool = self._scenario.daemon.status["spool"]
        memory = resident_mib(self._scenario.daemon.pid)
        self.samples.append(Sample(time.monotonic(), memory, spool["entries"], spool["acked_seq"]))
        return self.samples[-1]

    def _print(self, phase: str, sample: Sample) -> None:
        if len(self.samples) % round(PRINT_SECONDS / SAMPLE_SECONDS) == 1:
            print(f"{phase}: {sample.entries} entries in the spool, {sample.mib:.0f} MiB resident", flush=True)


def _quantile_ms(ordered: list[float], part: float) -> str:
    return f"{1000 * ordered[int(part * (len(ordered) - 1))]:.1f}" if ordered else "-"


@contextmanager
def unavailable(server: Postgres | None, file: Path) -> Iterator[None]:
    """Stop the server immediately, or lock the SQLite file, until the end of the block."""
    if server is not None:
        server.stop("immediate")
        yield
        server.start()
        return
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


async def outage(scenario: OutageScenario, server: Postgres | None, file: Path, *, minutes: float, rate: float) -> bool:
    """Run the outage, print the figures, and return whether drain rate and memory are within their limits."""
    async with scenario:
        watch = Watch(scenario)
        await watch.for_seconds(WARM_SECONDS, "before")
        warm = watch.samples[-1]
        with unavailable(server, file):
            await watch.for_seconds(60 * minutes, "away")
        back = watch.samples[-1]
        await watch.until("waiting", lambda sample: sample.acked > back.acked)
        drain_start = watch.samples[-2]
        await watch.until("draining", lambda sample: sample.entries < rate / 2)
        last = watch.samples[-1]
        await scenario.finish()
    seconds = last.at - drain_start.at
    drained = (last.acked - drain_start.acked) / seconds
    growth = max(sample.mib for sample in watch.samples) - warm.mib
    print(f"{drain_start.entries} entries drained in {seconds:.1f} s: {drained:.0f}/s, {drained / rate:.1f} times")
    print(f"memory: {warm.mib:.0f} MiB before, at most {growth:.0f} MiB more afterwards")
    return drained >= MIN_DRAIN_FACTOR * rate and growth <= GROWTH_MIB + (PAGES_MIB if server is None else 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.outage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long the database is down")
    parser.add_argument("--rate", type=float, default=1000, help="events per second")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres")
    options = parser.parse_args()
    binaries = find_binaries()
    with tempfile.TemporaryDirectory() as name, ForkServer() as fork_server:
        file = Path(name) / "ingestor.db"
        if options.database == "sqlite":
            scenario = OutageScenario(fork_server, Path(name), f"sqlite:///{file}", rate=options.rate, one_row=True)
            return not asyncio.run(outage(scenario, None, file, minutes=options.minutes, rate=options.rate))
        if binaries is None:
            sys.exit("PostgreSQL: install it, or set INGESTOR_TEST_PG_BIN (folder)")
        with own_server(binaries, fsync=True) as server:
            scenario = OutageScenario(fork_server, Path(name), server.url(), rate=options.rate, one_row=True)
            return not asyncio.run(outage(scenario, server, file, minutes=options.minutes, rate=options.rate))


if __name__ == "__main__":
    sys.exit(main())
