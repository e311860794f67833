"""Measures of the installed daemon: latency, processor, memory, backlog, start."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from ingestor.core.entries import Frame
from ingestor.spool.chunk_store import ChunkWriter, pack
from tests.support.process_usage import resident_mib
from tests.tools.benchmarks.environment import Environment, until
from tests.tools.benchmarks.installed_daemon import PATH, Daemon
from tests.tools.benchmarks.meter import Meter

POSITION_POLL_SECONDS = 0.002  # between two reads of the committed position; the resolution of a latency
WARM_SECONDS = 3.0
GOLDEN = 0.6180339887498949  # spreads the values of following minutes, as load_generator.js does
_CHUNK_ENTRIES = 500  # as in the spool of a daemon under load
_DRAIN_SECONDS = 1200.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from the emission of a row by the server until another session sees it committed."""

    rate: int
    seconds: float
    settings: str = ""

    def __call__(self, environment: Environment) -> dict[str, float]:
        with Daemon(environment, settings=self.settings) as daemon:
            environment.load.pace(self.rate, self.seconds)
            total = int(self.rate * self.seconds)
            positions_seen: list[tuple[int, float]] = []  # (position, ms since the epoch)
            deadline_ms = (time.time() + self.seconds + 30) * 1000
            while daemon.tables.row_count() < total if len(positions_seen) % 50 == 0 else True:
                position = daemon.tables.scalar("SELECT position FROM instances")
                positions_seen.append((position, time.time() * 1000))
                if positions_seen[-1][1] > deadline_ms:
                    raise TimeoutError("not all rows were committed")
                time.sleep(POSITION_POLL_SECONDS)
            positions_seen.append((positions_seen[-1][0] + total, time.time() * 1000))  # by now, all are committed
            environment.load.wait_for_push()
            rows = daemon.tables.rows_of("SELECT seq, value FROM samples ORDER BY seq")
        positions = [position for position, _ in positions_seen]
        latencies_ms = sorted(positions_seen[bisect_left(positions, seq)][1] - value for seq, value in rows)
        return {"p50": statistics.median(latencies_ms), "p99": latencies_ms[int(len(latencies_ms) * 0.99)]}


@dataclass(frozen=True, slots=True)
class Processor:
    """Percent of a core that the daemon and PostgreSQL take at a constant rate, after a warm-up."""

    rate: int
    seconds: float

    def __call__(self, environment: Environment) -> dict[str, float]:
        with Daemon(environment) as daemon:
            environment.load.pace(self.rate, self.seconds + WARM_SECONDS + 2)
            time.sleep(WARM_SECONDS)
            meter = Meter(environment, daemon.tables, daemon.pid)
            time.sleep(self.seconds)
            wall, client, database = meter.seconds()
            until(lambda: daemon.tables.row_count() >= self.rate * self.seconds)
        return {"": 100 * client / wall, "% of a core, database": 100 * database / wall}


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak resident MiB at a constant rate, and its growth since the daemon was ready and in the second half."""

    rate: int
    seconds: float

    def __call__(self, environment: Environment) -> dict[str, float]:
        with Daemon(environment) as daemon:
            ready = resident_mib(daemon.pid)
            environment.load.pace(self.rate, self.seconds)
            time.sleep(self.seconds / 2)
            first_half = daemon.peak_mib
            environment.load.wait_for_push(self.seconds + 60)
            until(lambda: daemon.tables.row_count() >= self.rate * self.seconds)
            peak = daemon.peak_mib
            return {"peak": peak, "above ready": peak - ready, "growth in the second half": peak - first_half}


@dataclass(frozen=True, slots=True)
class Backlog:
    """Events per second drained from a spool that is full at the start, and the peak resident MiB.

    The events of several connections alternate.
    """

    events: int
    connections: int = 1

    def __call__(self, environment: Environment) -> dict[str, float]:
        fill_spool(environment.folder / "spool", self.events, rows=1, connections=self.connections)
        with Daemon(environment) as daemon:
            ready = resident_mib(daemon.pid)
            until(lambda: daemon.tables.row_count() > 0)
            before, meter = daemon.tables.row_count(), Meter(environment, daemon.tables, daemon.pid)
            until(lambda: daemon.tables.row_count() >= self.events, _DRAIN_SECONDS)
            figures = meter.figures(self.events - before)
            return figures | {"peak MiB": daemon.peak_mib, "MiB above ready": daemon.peak_mib - ready}


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Seconds from the start until all subscriptions are live in the database, and the resident MiB."""

    count: int

    def __call__(self, environment: Environment) -> dict[str, float]:
        started_at = time.monotonic()
        with Daemon(environment, tickers=self.count) as daemon:
            live = "SELECT count(*) FROM coverage WHERE state = 'live' AND ended_at IS NULL"
            ended_at = until(lambda: daemon.tables.scalar(live) == self.count)
            return {"seconds": ended_at - started_at, "MiB": resident_mib(daemon.pid)}


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start to READY with a spool of this size."""

    size_bytes: int

    def __call__(self, environment: Environment) -> dict[str, float]:
        if self.size_bytes:
            events = self.size_bytes // len(_text(0, 60))
            fill_spool(environment.folder / "spool", events, rows=60)
        # The database is unreachable, so that the spool does not drain.
        daemon = Daemon(environment, database_url="postgresql://nobody@127.0.0.1:1/none")
        started_at = time.monotonic()
        daemon.start()
        try:
            daemon.wait_until_ready()
            return {"": time.monotonic() - started_at}
        finally:
            daemon.stop()


def fill_spool(folder: Path, events: int, rows: int, connections: int = 1) -> None:
    """Create a spool like that of a daemon that could not reach its database. Its connections take turns."""
    folder.mkdir(mode=0o700)
    file = ChunkWriter(folder / "spool.db")
    now = time.time_ns() // 1000 - events
    for first in range(0, events, _CHUNK_ENTRIES):
        frames = [
            Frame(now + number, f"{number % connections:012}", "stream", "res", PATH, "{}", _text(number * rows, rows))
            for number in range(first, min(first + _CHUNK_ENTRIES, events))
        ]
        file.write([pack(first + 1, frames)], acked=0)
    file.close()


def _text(first_minute: int, rows: int) -> str:
    return f'42["res",[{",".join(_row(first_minute + number) for number in range(rows))}]]'


def _row(minute: int) -> str:
    day, rest = divmod(minute, 1440)
    date = f"{2000 + day // 336}-{day // 28 % 12 + 1:02}-{day % 28 + 1:02}"  # months of 28 days need no calendar
    ts = f"{date}T{rest // 60:02}:{rest % 60:02}:00.000Z"
    return f'{{"ts":"{ts}","ticker":"T0","average_sentiment":"{minute * GOLDEN % 1 * 2 - 1:.16f}"}}'
