"""The cases to measure, and the goals they must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.tools.benchmarks.daemon_measures import Backlog, Latency, Memory, Processor, Start, Subscriptions
from tests.tools.benchmarks.environment import NO_DATABASE, POSTGRES, SQLITE, Measure
from tests.tools.benchmarks.meter import BOTH, BYTES
from tests.tools.benchmarks.script_measure import Script
from tests.tools.benchmarks.throughput_measures import BadRows, Restated, Throughput, TwoDaemons

OURS = "ours"
NODE = "Node, pg, unnest"
GENERATOR = "load generator, bytes only counted"
FAST = "{max_wait: 5ms}"

Direction = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a figure of a subject, or, with ``against``, for its ratio to the same figure of another subject.

    ``figure`` "" is the main one.
    """

    subject: str
    direction: Direction
    bound: float
    against: str = ""
    figure: str = ""

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
    chart: bool = False


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
            NO_DATABASE,
            {
                GENERATOR: Script("byte_counter", events(1_000_000), counts=True),
                "raw aiohttp loop, counting": Script("aiohttp_counter", events(400_000), counts=True),
                "python-socketio, counting": Script("socketio_counter", events(80_000), counts=True),
                "ours, counting": Script("ingestor_receiver", events(400_000), counts=True),
                "ours, durable in the spool": Script("ingestor_receiver", events(400_000)),
            },
            (Goal("ours, counting", "at least", 20, "python-socketio, counting"),),
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
                NODE: Script("pg_unnest", events(150_000)),
            },
            (
                Goal(OURS, "at least", 110, "naive, synchronous"),
                Goal(OURS, "at least", 10, "cryptofeed's writer"),
                Goal(OURS, "at least", 1.2, NODE),
                Goal(NODE, "at least", 1.0, OURS, BOTH),
                Goal(OURS, "at most", 150, figure=BYTES),
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
                "naive, asynchronous": Script("naive_async", events(2_000)),
            },
            (Goal(OURS, "at least", 120, "naive, synchronous"), Goal(OURS, "at most", 130, figure=BYTES)),
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
            (Goal(OURS, "at least", 1.0, "bare script"),),
            chart=True,
        ),
        Case(
            "harder",
            "harder inputs until committed to PostgreSQL",
            "events/s",
            POSTGRES,
            {
                "two daemons on one database": TwoDaemons(events(100_000)),
                "alternating connections, out of a full spool": Backlog(events(200_000), connections=2),
                "half of the rows restated": Restated(events(50_000)),
                "one row of each batch rejected": BadRows(events(100_000), bad_every=5_000),
            },
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
            (
                Goal("max_wait 5 ms", "at most", 10, figure="p50"),
                Goal("max_wait 5 ms", "at most", 30, figure="p99"),
                Goal("default", "at most", 70, figure="p50"),
                Goal("default", "at most", 120, figure="p99"),
            ),
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
            "processor at a constant rate",
            "% of a core",
            POSTGRES,
            # A minute has one search for gaps, at the daemon's tenth second; --quick counts it several times over.
            {"1,000 events/s": Processor(1_000, 60 * size), "100 events/s": Processor(100, 60 * size)},
            (Goal("1,000 events/s", "at most", 6), Goal("100 events/s", "at most", 2)),
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
    """Return the ratios checked with every change. The bounds are some 60 % of what a busy machine reaches."""
    stock, naive = "python-socketio, counting", "naive, asynchronous"
    receive: dict[str, Measure] = {
        stock: Script("socketio_counter", 15_000, counts=True),
        OURS: Script("ingestor_receiver", 60_000),
    }
    received = Goal(OURS, "at least", 13, stock)
    return [
        Case("receive", "received, ours durable", "events/s", NO_DATABASE, receive, (received,)),
        *(
            Case(
                database.lower(),
                f"one-row events until committed to {database}",
                "events/s",
                database,
                {naive: Script("naive_async", 600), OURS: Throughput(40_000)},
                (Goal(OURS, "at least", bound, naive),),
            )
            for database, bound in ((POSTGRES, 18), (SQLITE, 38))
        ),
    ]


def _windows(name: str, database: str, count: int) -> Case:
    return Case(
        name,
        f"rows offered in windows of 60, of which one is new, to {database}",
        "rows/s",
        database,
        {OURS: Throughput(count, rows=60, rolling=True, tickers=20)},
        (Goal(OURS, "at least", 1_100_000),),
    )


def _memory(name: str, seconds: float, *, long: bool = False) -> Case:
    goals = [Goal(OURS, "at most", 130, figure="peak")]
    if long:  # it grows for the first minute
        goals.append(Goal(OURS, "at most", 3, figure="growth in the second half"))
    title = f"memory, 5,000 events/s for {seconds:g} s"
    return Case(name, title, "MiB", POSTGRES, {OURS: Memory(5_000, seconds)}, tuple(goals), long=long)


def _backlog(name: str, count: int, *, long: bool = False) -> Case:
    goals = (
        Goal(OURS, "at least", 160_000),
        Goal(OURS, "at most", 160, figure="peak MiB"),
        Goal(OURS, "at most", 30, figure="MiB above ready"),
    )
    title = f"{count:,} events out of a full spool"
    return Case(name, title, "events/s", POSTGRES, {OURS: Backlog(count)}, goals, long=long)
