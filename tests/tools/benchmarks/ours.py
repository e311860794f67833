"""What is measured of the daemon: throughput, latency, processor, memory, backlog, start."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from ingestor.core.entries import Frame
from ingestor.spool.chunk_store import ChunkWriter, pack
from tests.support.process_usage import cpu_seconds, resident_mib
from tests.tools.benchmarks.daemon import PATH, Daemon
from tests.tools.benchmarks.stage import POLL_SECONDS, Stage, until

LOOK_SECONDS = 0.002  # between looks at the committed position: what a latency is known to
WARM_SECONDS = 3.0
_CHUNK = 500  # entries of a chunk, as a loaded daemon has them
_DRAIN_SECONDS = 1200.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Events per second, from the first one pushed until the rows of the last are committed, and all there; and the
    daemon's own processor time for one, which a busy machine stretches less.
    """

    events: int
    rows: int = 1
    rolling: bool = False
    tickers: int = 1

    def __call__(self, stage: Stage) -> dict[str, float]:
        with Daemon(stage, tickers=self.tickers) as daemon:
            stage.load.prepare(self.events, self.rows, rolling=self.rolling)
            before, started = cpu_seconds(daemon.pid), time.monotonic()
            stage.load.push()
            result = until(lambda: daemon.tables.rows() >= self.events * self.rows)
            used = cpu_seconds(daemon.pid) - before
            found = daemon.tables.number("SELECT count(*) FROM samples")
        wanted = self.events + self.tickers * (self.rows - 1) if self.rolling else self.events * self.rows
        if found != wanted:
            raise RuntimeError(f"{found} samples instead of {wanted}")
        units = self.events * (self.rows if self.rolling else 1)
        return {"": units / (result - started), "µs of processor each": 1e6 * used / units}


@dataclass(frozen=True, slots=True)
class Latency:
    """From a row's emission by the server until another session sees it committed, in ms."""

    rate: int
    seconds: float
    settings: str = ""

    def __call__(self, stage: Stage) -> dict[str, float]:
        with Daemon(stage, settings=self.settings) as daemon:
            stage.load.pace(self.rate, self.seconds)
            total = int(self.rate * self.seconds)
            looks: list[tuple[int, float]] = []  # (position, ms since the epoch when it was seen)
            until_ms = (time.time() + self.seconds + 30) * 1000
            while daemon.tables.rows() < total if len(looks) % 50 == 0 else True:
                position = daemon.tables.number("SELECT position FROM instances")
                looks.append((position, time.time() * 1000))
                if looks[-1][1] > until_ms:
                    raise TimeoutError("not all rows were committed")
                time.sleep(LOOK_SECONDS)
            looks.append((looks[-1][0] + total, time.time() * 1000))  # all are committed by now
            stage.load.pushed()
            rows = daemon.tables.ask("SELECT seq, value FROM samples ORDER BY seq")
        positions = [position for position, _ in looks]
        waits = sorted(looks[bisect_left(positions, seq)][1] - value for seq, value in rows)
        return {"p50": statistics.median(waits), "p99": waits[int(len(waits) * 0.99)]}


@dataclass(frozen=True, slots=True)
class Processor:
    """Percent of a core at a rate, after it is warm."""

    rate: int
    seconds: float

    def __call__(self, stage: Stage) -> dict[str, float]:
        with Daemon(stage) as daemon:
            stage.load.pace(self.rate, self.seconds + WARM_SECONDS + 2)
            time.sleep(WARM_SECONDS)
            before, began = cpu_seconds(daemon.pid), time.monotonic()
            time.sleep(self.seconds)
            used = (cpu_seconds(daemon.pid) - before) / (time.monotonic() - began)
            until(lambda: daemon.tables.rows() >= self.rate * self.seconds)
        return {"": 100 * used}


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB resident at a rate: at the most, and how much that is above what it was when ready."""

    rate: int
    seconds: float

    def __call__(self, stage: Stage) -> dict[str, float]:
        with Daemon(stage) as daemon:
            ready = resident_mib(daemon.pid)
            stage.load.pace(self.rate, self.seconds)
            stage.load.pushed(self.seconds + 60)
            until(lambda: daemon.tables.rows() >= self.rate * self.seconds)
            return {"peak": daemon.peak_mib, "above ready": daemon.peak_mib - ready}


@dataclass(frozen=True, slots=True)
class Backlog:
    """Events per second out of a spool that is full at the start, and MiB resident meanwhile."""

    events: int

    def __call__(self, stage: Stage) -> dict[str, float]:
        fill_spool(stage.folder / "spool", self.events, rows=1)
        with Daemon(stage) as daemon:
            ready = resident_mib(daemon.pid)
            began = until(lambda: daemon.tables.rows() > 0)
            before = daemon.tables.rows()
            result = until(lambda: daemon.tables.rows() >= self.events, _DRAIN_SECONDS)
            rate = (self.events - before) / max(result - began, POLL_SECONDS)
            return {"": rate, "peak MiB": daemon.peak_mib, "MiB above ready": daemon.peak_mib - ready}


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Seconds from the start until all are asked for, answered and known to the database, and MiB resident."""

    count: int

    def __call__(self, stage: Stage) -> dict[str, float]:
        started = time.monotonic()
        with Daemon(stage, tickers=self.count) as daemon:
            live = "SELECT count(*) FROM coverage WHERE state = 'live' AND ended_at IS NULL"
            result = until(lambda: daemon.tables.number(live) == self.count)
            return {"seconds": result - started, "MiB": resident_mib(daemon.pid)}


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start to READY over a spool of some size."""

    size_bytes: int

    def __call__(self, stage: Stage) -> dict[str, float]:
        if self.size_bytes:
            events = self.size_bytes // len(_text(0, 60))
            fill_spool(stage.folder / "spool", events, rows=60)
        daemon = Daemon(stage, settings="", database_url="postgresql://nobody@127.0.0.1:1/none")  # away: nothing drains
        started = time.monotonic()
        daemon.start()
        try:
            daemon.ready()
            return {"": time.monotonic() - started}
        finally:
            daemon.end()


def fill_spool(folder: Path, events: int, rows: int) -> None:
    """A spool as a daemon leaves it that could not reach its database."""
    folder.mkdir(mode=0o700)
    file = ChunkWriter(folder / "spool.db")
    now = time.time_ns() // 1000 - events
    for first in range(0, events, _CHUNK):
        frames = [
            Frame(now + number, "0" * 12, "stream", "res", PATH, "{}", _text(number * rows, rows))
            for number in range(first, min(first + _CHUNK, events))
        ]
        file.write([pack(first + 1, frames)], acked=0)
    file.close()


def _text(first_minute: int, rows: int) -> str:
    return f'42["res",[{",".join(_row(first_minute + number) for number in range(rows))}]]'


def _row(minute: int) -> str:
    day, rest = divmod(minute, 1440)
    date = f"{2000 + day // 336}-{day // 28 % 12 + 1:02}-{day % 28 + 1:02}"  # months of 28 days: no calendar is needed
    ts = f"{date}T{rest // 60:02}:{rest % 60:02}:00.000Z"
    return f'{{"ts":"{ts}","ticker":"T0","average_sentiment":"{(minute % 2000) / 1000 - 1:.16f}"}}'
