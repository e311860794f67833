"""The cases to measure, and the goals they must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.tools.benchmarks.daemon_measures import Backlog, Latency, Memory, Processor, Start, Subscriptions, Throughput
from tests.tools.benchmarks.environment import POSTGRES, SQLITE, Measure
from tests.tools.benchmarks.script_measure import Script

OURS = "ours"
GENERATOR = "load generator, read by nobody"
FAST = "{max_wait: 5ms}"

Direction = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for one figure, or, with ``against``, for its ratio to another subject's figure."""

    figure: str
    direction: Direction
    bound: float
    against: str = ""

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.direction == "at least" else value <= self.bound


@dataclass(frozen=True, slots=True)
class Case:
    """Subjects that are measured in turn and compared only with each other."""

    name: str
    title: str
    unit: str
    database: str
    subjects: dict[str, Measure]
    goals: tuple[Goal, ...] = ()
    long: bool = False
    chart: bool = False  # the throughput of its subjects is drawn


def cases(*, quick: bool) -> list[Case]:
    """Return all cases. ``quick`` uses a fifth of the events: a first impression, not figures to quote."""
    size = 0.2 if quick else 1.0
    full = f"{size:g} GB of spool"

    def events(count: int) -> int:
        return int(count * size)

    return [
        Case(
            "receive",
            "received",
            "events/s",
            POSTGRES,
            {
                GENERATOR: Script("byte_counter", events(1_000_000), counts=True),
                "raw aiohttp loop, counting": Script("aiohttp_counter", events(400_000), counts=True),
                "python-socketio, counting": Script("socketio_counter", events(80_000), counts=True),
                "ours, counting": Script("ingestor_receiver", events(400_000), counts=True),
                "ours, durable in the spool": Script("ingestor_receiver", events(400_000)),
            },
            (Goal("ours, counting", "at least", 3.5, "python-socketio, counting"),),
            chart=True,
        ),
        Case(
            "postgres",
            "one-row events until committed to PostgreSQL",
            "events/s",
            POSTGRES,
            {
                OURS: Throughput(events(200_000)),
                "naive, synchronous": Script("naive_sync", events(3_000)),
                "naive, asynchronous": Script("naive_async", events(4_000)),
                "cryptofeed's writer": Script("cryptofeed_writer", events(60_000)),
                "Node, pg, unnest": Script("pg_unnest", events(150_000)),
            },
            (
                Goal(OURS, "at least", 60, "naive, synchronous"),
                Goal(OURS, "at least", 3, "cryptofeed's writer"),
                Goal(OURS, "at least", 1.2, "Node, pg, unnest"),
            ),
            chart=True,
        ),
        Case(
            "sqlite",
            "one-row events until committed to SQLite",
            "events/s",
            SQLITE,
            {
                OURS: Throughput(events(200_000)),
                "naive, synchronous": Script("naive_sync", events(2_000)),
                "naive, asynchronous": Script("naive_async", events(4_000)),
            },
            (Goal(OURS, "at least", 100, "naive, synchronous"),),
            chart=True,
        ),
        Case(
            "hundred",
            "events of 100 new rows until committed to PostgreSQL",
            "events/s",
            POSTGRES,
            {
                OURS: Throughput(events(5_000), rows=100),
                "bare script": Script("copy_and_merge", events(5_000), rows=100),
            },
            (Goal(OURS, "at least", 0.6, "bare script"),),
            chart=True,
        ),
        *(_windows(f"windows-{database.lower()}", database, events(50_000)) for database in (POSTGRES, SQLITE)),
        Case(
            "latency",
            "emitted until committed, 5,000 events/s",
            "ms",
            POSTGRES,
            {
                "max_wait 5 ms": Latency(5_000, 30 * size, f"batch: {FAST}"),
                "default": Latency(5_000, 30 * size),
            },
            (Goal("max_wait 5 ms, p50", "at most", 20), Goal("max_wait 5 ms, p99", "at most", 50)),
        ),
        Case(
            "latency-500",
            "emitted until committed, 500 events/s",
            "ms",
            POSTGRES,
            {"max_wait 5 ms": Latency(500, 30 * size, f"batch: {FAST}"), "default": Latency(500, 30 * size)},
        ),
        Case(
            "processor",
            "processor at 1,000 events/s",
            "% of a core",
            POSTGRES,
            {OURS: Processor(1_000, 30 * size)},
            (Goal(OURS, "at most", 6),),
        ),
        _memory("memory", 60 * size),
        _memory("memory-long", 600, long=True),
        _backlog("backlog", events(500_000)),
        _backlog("backlog-long", 5_000_000, long=True),
        Case(
            "subscriptions",
            "5,000 subscriptions, started until all are live",
            "",
            POSTGRES,
            {OURS: Subscriptions(5_000)},
        ),
        Case(
            "start",
            "started until READY",
            "s",
            POSTGRES,
            {"empty spool": Start(0), full: Start(int(1e9 * size))},
            (Goal(full, "at most", 5),),
        ),
    ]


def guards() -> list[Case]:
    """Return the ratios checked with every change. The bounds are generous, so that a busy machine reaches them."""
    stock, naive = "python-socketio, counting", "naive, asynchronous"
    receive = {stock: Script("socketio_counter", 15_000, counts=True), OURS: Script("ingestor_receiver", 60_000)}
    return [
        Case("receive", "received, ours durable", "events/s", POSTGRES, receive, (Goal(OURS, "at least", 3.5, stock),)),
        *(
            Case(
                database.lower(),
                f"one-row events until committed to {database}",
                "events/s",
                database,
                {naive: Script("naive_async", 600), OURS: Throughput(40_000)},
                (Goal(OURS, "at least", 10, naive),),
            )
            for database in (POSTGRES, SQLITE)
        ),
    ]


def _windows(name: str, database: str, count: int) -> Case:
    return Case(
        name,
        f"rows offered in windows of 60, of which one is new, to {database}",
        "rows/s",
        database,
        {OURS: Throughput(count, rows=60, rolling=True, tickers=20)},
        (Goal(OURS, "at least", 400_000),),
    )


def _memory(name: str, seconds: float, *, long: bool = False) -> Case:
    goals = (Goal(f"{OURS}, peak", "at most", 160), Goal(f"{OURS}, above ready", "at most", 30))
    title = f"memory, 5,000 events/s for {seconds:g} s"
    return Case(name, title, "MiB", POSTGRES, {OURS: Memory(5_000, seconds)}, goals, long=long)


def _backlog(name: str, count: int, *, long: bool = False) -> Case:
    goals = (Goal(f"{OURS}, peak MiB", "at most", 160), Goal(f"{OURS}, MiB above ready", "at most", 30))
    title = f"{count:,} events out of a full spool"
    return Case(name, title, "events/s", POSTGRES, {OURS: Backlog(count)}, goals, long=long)
