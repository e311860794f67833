"""A long outage by hand: ``python -m tests.tools.outage --minutes 10 --rate 1000 --database postgres``.

A daemon receives one-row events while its database is away, then writes what has piled up while more comes. Printed
are what was lost (nothing), the rate at which the spool drained, the memory over time, and how long the feed waited for
acknowledgements, which come after the fsync, before, during and after the outage. Exit code 1 if the drain was slower
than ten times the rate, or memory grew by more than 64 MiB; with SQLite by 128, of which 64 are its page cache.
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
LOOK_SECONDS = 0.25
PRINT_SECONDS = 10
GROWTH_MIB = 64
PAGES_MIB = 64  # of SQLite in the daemon, which fills as the file grows: see store/engine.py
TIMES = 10  # what the drain must reach of the live rate


@dataclass(frozen=True, slots=True)
class Look:
    """The daemon at one moment."""

    at: float  # time.monotonic()
    mib: float  # resident
    entries: int  # in the spool
    acked: int


class Watch:
    """Looks at a daemon all the time and prints what it sees, and at the end of a phase how long the feed waited."""

    def __init__(self, scenario: OutageScenario) -> None:
        self._scenario = scenario
        self.looks: list[Look] = []

    async def for_seconds(self, seconds: float, phase: str) -> None:
        end = time.monotonic() + seconds
        await self.until(phase, lambda look: look.at >= end)

    async def until(self, phase: str, condition: Callable[[Look], bool]) -> None:
        self._scenario.feed.ack_delays.clear()
        while not condition(look := self._look()):
            self._print(phase, look)
            await asyncio.sleep(LOOK_SECONDS)
        waits = sorted(self._scenario.feed.ack_delays)
        print(f"{phase}: acknowledged after {_part(waits, 0.5)} ms (median), {_part(waits, 0.99)} ms (99 %)")

    def _look(self) -> Look:
        spool = self._scenario.daemon.status["spool"]
        memory = resident_mib(self._scenario.daemon.pid)
        self.looks.append(Look(time.monotonic(), memory, spool["entries"], spool["acked_seq"]))
        return self.looks[-1]

    def _print(self, phase: str, look: Look) -> None:
        if len(self.looks) % round(PRINT_SECONDS / LOOK_SECONDS) == 1:
            print(f"{phase}: {look.entries} entries in the spool, {look.mib:.0f} MiB resident", flush=True)


def _part(ordered: list[float], part: float) -> str:
    return f"{1000 * ordered[int(part * (len(ordered) - 1))]:.1f}" if ordered else "-"


@contextmanager
def away(server: Postgres | None, file: Path) -> Iterator[None]:
    """The server is stopped at once, or another program holds the file."""
    if server is not None:
        server.stop("immediate")
        yield
        server.start()
        return
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


async def outage(scenario: OutageScenario, server: Postgres | None, file: Path, *, minutes: float, rate: float) -> bool:
    """Whether it was borne as it should be."""
    async with scenario:
        watch = Watch(scenario)
        await watch.for_seconds(WARM_SECONDS, "before")
        warm = watch.looks[-1]
        with away(server, file):
            await watch.for_seconds(60 * minutes, "away")
        back = watch.looks[-1]
        await watch.until("waiting", lambda look: look.acked > back.acked)
        began = watch.looks[-2]
        await watch.until("draining", lambda look: look.entries < rate / 2)
        last = watch.looks[-1]
        await scenario.finish()
    drained = (last.acked - began.acked) / (last.at - began.at)
    growth = max(look.mib for look in watch.looks) - warm.mib
    print(f"{began.entries} entries drained in {last.at - began.at:.1f} s: {drained:.0f}/s, {drained / rate:.1f} times")
    print(f"memory: {warm.mib:.0f} MiB before, at most {growth:.0f} MiB more since")
    return drained >= TIMES * rate and growth <= GROWTH_MIB + (PAGES_MIB if server is None else 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.outage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long the database is away")
    parser.add_argument("--rate", type=float, default=1000, help="events a second")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres")
    asked = parser.parse_args()
    binaries = find_binaries()
    with tempfile.TemporaryDirectory() as name, ForkServer() as fork_server:
        file = Path(name) / "ingestor.db"
        if asked.database == "sqlite":
            scenario = OutageScenario(fork_server, Path(name), f"sqlite:///{file}", rate=asked.rate, one_row=True)
            return not asyncio.run(outage(scenario, None, file, minutes=asked.minutes, rate=asked.rate))
        if binaries is None:
            sys.exit("PostgreSQL: install it, or set INGESTOR_TEST_PG_BIN (folder)")
        with own_server(binaries, fsync=True) as server:
            scenario = OutageScenario(fork_server, Path(name), server.url(), rate=asked.rate, one_row=True)
            return not asyncio.run(outage(scenario, server, file, minutes=asked.minutes, rate=asked.rate))


if __name__ == "__main__":
    sys.exit(main())
