"""Run the daemon for a long time without faults: ``python -m tests.tools.soak --minutes 10 --rate 500 --peer 4.8``.

The server's tokens expire after twenty seconds, and it disconnects sessions with an expired token. At the end, a table
compares what the server sent with the stored rows, and shows coverage, renewals, the time between logins, memory,
descriptors and CPU. Without ``--peer`` the server is the simulator, which also restates values; with it, a real server
from npm, selected by the beginning of its version. Exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from tests.support.faulty_simulator import FaultySimulator

from ..support import expected_rows
from ..support.daemon import CommandProcess, DaemonProcess, until, write_config
from ..support.db_reader import DbReader
from ..support.expected_rows import Emitted, Key
from ..support.node_server import VERSIONS, NodeServer
from ..support.process_usage import cpu_seconds, open_descriptors, resident_mib

# Two connections, and both forms of an event. Rows of the second path, and all rows of a real server, are sent only
# once, so a row missed between two connections stays missing.
WANTED = {
    "/real-time/crowd-sentiment": ("AAPL", "TSLA", "ON", "6E_F", "CMGO"),
    "market-prophit-sentiment": ("EURAUD", "GOOG", "MSFT", "IBM", "EBAY"),
}
TICKERS = [ticker for tickers in WANTED.values() for ticker in tickers]
WINDOW_ROWS = 3  # of a simulator's event on the first path; one of them is new
TOKEN_SECONDS = 20
RESTATED_TICKS = 50  # between two restatements of all tickers
WARM_SECONDS = 20  # after which memory and descriptors must not grow
SPACING_SECONDS = 5.0
DRAIN_SECONDS = 60
GROWTH_MIB = 112  # 64 for SQLite's page cache, the rest for the dedup cache
GROWTH_DESCRIPTORS = 3  # a second connection and a login may be open at either moment
SAMPLE_SECONDS = 0.25
PRINT_SECONDS = 30


class Server(Protocol):
    """A simulator or a Node server."""

    api_key: str

    @property
    def url(self) -> str: ...

    @property
    def login_times(self) -> Any: ...

    @property
    def emitted(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """The resource usage of the daemon at one moment."""

    at: float  # time.monotonic()
    mib: float  # resident
    open_descriptors: int
    cpu_seconds: float


class EmissionLog:
    """The values that the server has emitted so far, without the events, to save memory."""

    def __init__(self, server: Server) -> None:
        self.events = 0
        self.values: dict[Key, list[float]] = defaultdict(list)
        self._server = server

    def update(self) -> None:
        """Add the events emitted since the last call."""
        emitted: list[Emitted] = list(self._server.emitted)
        self._server.emitted.clear()
        for emission in emitted:
            expected_rows.add(emission, self.values)
        self.events += len(emitted)


class Table:
    """Prints figures with their limits, and remembers whether a limit was exceeded."""

    def __init__(self) -> None:
        self.passed = True

    def add(self, name: str, figure: object, limit: str = "", passed: bool = True) -> None:
        self.passed &= passed
        print(f"{name:44} {figure!s:>26}   {limit}{'' if passed else '  FAILED'}".rstrip(), flush=True)

    def expect_none(self, name: str, count: int) -> None:
        """Add a count that must be 0."""
        self.add(name, count, "none", not count)


async def soak(server: Server, folder: Path, *, minutes: float, rate: float) -> bool:
    """Run the daemon, print the table, and return whether every limit was kept."""
    config = write_config(
        folder,
        url=server.url,
        database_url=f"sqlite:///{folder / 'ingestor.db'}",
        subscriptions=WANTED,
    )
    emission_log, table = EmissionLog(server), Table()
    async with DaemonProcess(config, server.api_key) as daemon:
        await daemon.wait_until_live()
        began = time.monotonic()
        samples = await watch(daemon, emission_log, minutes * 60)
        table.add("minutes", f"{(time.monotonic() - began) / 60:.1f}")
        await silence(server)
        await asyncio.sleep(0.5)  # until events in flight have arrived
        emission_log.update()
        spool = daemon.status["spool"]
        await until(lambda: daemon.status["spool"]["acked_seq"] >= spool["head_seq"], DRAIN_SECONDS)
        assert await daemon.terminate(timeout_seconds=20) == 0, daemon.stderr[-2000:]
    add_usage(table, samples)
    add_received(table, emission_log, daemon.db, rate * minutes * 60)
    add_coverage(table, daemon.db)
    add_renewals(table, daemon.db, server.login_times, minutes * 60)
    await add_audit(table, config)
    return table.passed


async def watch(daemon: DaemonProcess, emission_log: EmissionLog, seconds: float) -> list[Sample]:
    """Sample the daemon until the time is over, and print some of the samples."""
    samples: list[Sample] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        emission_log.update()
        pid = daemon.pid
        samples.append(Sample(time.monotonic(), resident_mib(pid), open_descriptors(pid), cpu_seconds(pid)))
        if len(samples) % round(PRINT_SECONDS / SAMPLE_SECONDS) == 1:
            last = samples[-1]
            print(
                f"{emission_log.events} events, {last.mib:.0f} MiB resident, {last.open_descriptors} descriptors",
                flush=True,
            )
        await asyncio.sleep(SAMPLE_SECONDS)
    return samples


async def silence(server: Server) -> None:
    """Stop the server's events."""
    for ticker in TICKERS:
        if isinstance(server, FaultySimulator):
            server.mute(ticker)
        elif isinstance(server, NodeServer):
            await server.run_command("mute", ticker=ticker)


# The table.


def add_usage(table: Table, samples: list[Sample]) -> None:
    first = next((sample for sample in samples if sample.at > samples[0].at + WARM_SECONDS), samples[0])
    half, last = samples[len(samples) // 2], samples[-1]
    cpu = 100 * (last.cpu_seconds - first.cpu_seconds) / max(last.at - first.at, 1e-9)
    table.add("CPU of the daemon, % of a core", f"{cpu:.1f}")
    table.add(
        "MiB resident, warm, half-way, at the end",
        f"{first.mib:.1f}, {half.mib:.1f}, {last.mib:.1f}",
        f"at most {GROWTH_MIB} more",
        last.mib - first.mib <= GROWTH_MIB,
    )
    table.add(
        "descriptors, warm and at the end",
        f"{first.open_descriptors}, {last.open_descriptors}",
        f"at most {GROWTH_DESCRIPTORS} more",
        last.open_descriptors - first.open_descriptors <= GROWTH_DESCRIPTORS,
    )


def add_received(table: Table, emission_log: EmissionLog, db: DbReader, expected: float) -> None:
    sent, current = emission_log.values, db.current()
    table.add(
        "events sent", emission_log.events, f"at least 90 % of {expected:.0f}", emission_log.events >= 0.9 * expected
    )
    table.add("events stored", db.scalar("SELECT count(*) FROM payloads"))
    table.add("samples sent", len(sent), "some", bool(sent))
    table.expect_none("samples missing", len(sent.keys() - current.keys()))
    table.expect_none("samples that were not sent", len(current.keys() - sent.keys()))
    wrong = sum(current[key] != values[-1] for key, values in sent.items() if key in current)
    table.expect_none("samples with another value than the last", wrong)
    add_revisions(table, sent, db.revisions())
    add_row_counts(table, db, len(current))


def add_revisions(table: Table, sent: Mapping[Key, list[float]], found: Mapping[Key, list[float]]) -> None:
    replaced = {(key, value) for key, values in sent.items() for value in values[:-1]}
    recorded = [(key, value) for key, values in found.items() for value in values]
    table.add("values restated", len(replaced))
    table.expect_none("revisions missing", len(replaced - set(recorded)))
    table.expect_none("revisions that were not sent", len(set(recorded) - replaced))
    table.expect_none("revisions recorded twice", len(recorded) - len(set(recorded)))


def add_row_counts(table: Table, db: DbReader, samples: int) -> None:
    outcomes = ("new", "revised", "duplicate", "dead")
    columns = ", ".join(f"sum({outcome}_rows) AS {outcome}" for outcome in outcomes)
    (rows,) = db.rows(f"SELECT {columns} FROM batches")
    received = db.scalar("SELECT sum(row_count) FROM payloads")
    table.add("rows new", rows["new"], "as many as samples", rows["new"] == samples)
    table.add("rows revised", rows["revised"])
    table.add("rows duplicate", rows["duplicate"], "at least one", rows["duplicate"] > 0)
    table.expect_none("rows dead", rows["dead"])
    table.add("rows received", received, "the sum of the above", received == sum(rows.values()))
    db.assert_consistent()  # raises an AssertionError with details


def add_coverage(table: Table, db: DbReader) -> None:
    lives = {" ".join(db.states(ticker)) for ticker in TICKERS}
    table.add("states of each subscription", "; ".join(lives), "live once", lives == {"pending live stopped"})
    firsts = "SELECT min(started_at) AS first FROM coverage WHERE state = 'live' GROUP BY subscription_id"
    table.expect_none(
        "gaps since all were live",
        db.scalar(f"SELECT count(*) FROM gaps WHERE to_at > (SELECT max(first) FROM ({firsts}))"),
    )
    lost = db.scalar("SELECT count(*) FROM events WHERE kind IN ('disconnected', 'connect_failed')")
    table.expect_none("connections lost or refused", lost)


def add_renewals(table: Table, db: DbReader, login_times: Sequence[float], seconds: float) -> None:
    renewals = db.scalar("SELECT count(*) FROM events WHERE kind = 'connected'") - len(WANTED)
    least = len(WANTED) * (int(seconds / TOKEN_SECONDS) - 1)
    table.add("renewals", renewals, f"at least {least}", renewals >= least)
    closest = min((later - earlier for earlier, later in pairwise(login_times)), default=float("inf"))
    limit = f"at least {SPACING_SECONDS:g}"
    table.add("seconds between two logins, least", f"{closest:.2f}", limit, closest >= SPACING_SECONDS)


async def add_audit(table: Table, config: Path) -> None:
    async with CommandProcess("audit", "--config", config, folder=config.parent) as audit:
        code = await audit.wait_for_exit(timeout_seconds=120)
    table.expect_none("exit code of audit", code)


def generation_of(version: str) -> str:
    """Return the generation whose version begins with this text; for argparse."""
    found = [name for name, full in VERSIONS.items() if full.startswith(version) and not full.startswith("0.")]
    if not found:
        raise argparse.ArgumentTypeError(f"one of {', '.join(VERSIONS.values())}")
    return found[0]


def server_for(generation: str | None, rate: float) -> FaultySimulator | NodeServer:
    interval_seconds = len(TICKERS) / rate
    if generation is not None:
        return NodeServer(
            generation,
            interval_seconds=interval_seconds,
            window_rows=1,
            lifetime_seconds=TOKEN_SECONDS,
            kick_expired=True,
        )
    return FaultySimulator(
        interval_seconds=interval_seconds,
        step_seconds=60,
        cadence_seconds=60,
        window_seconds=60 * WINDOW_ROWS,
        restate_every=RESTATED_TICKS,
        token_bytes=9300,
        token_lifetime_seconds=TOKEN_SECONDS,
        kick_expired=True,
        record_limit=1_000_000,
    )


async def run(arguments: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as name:
        async with server_for(arguments.peer, arguments.rate) as server:
            return await soak(server, Path(name), minutes=arguments.minutes, rate=arguments.rate)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long")
    parser.add_argument("--rate", type=float, default=500, help="events a second")
    parser.add_argument("--peer", type=generation_of, help="a real server, by the beginning of its version: 4.8, 1.0.6")
    return not asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
