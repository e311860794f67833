"""A long ordinary time by hand: ``python -m tests.tools.soak --minutes 10 --rate 500 --peer 4.8``.

The daemon, as a process, before a server whose tokens live for twenty seconds and which throws out whoever's token has
ended. At the end it is reckoned: what the server sent against what the tables hold, what coverage says, how often the
connection was renewed, how far apart the logins were, and what memory, descriptors and CPU it took. Without ``--peer``
the server is the simulator, which also restates values; with it a real one from npm, by the beginning of its version.
Exit code 1 if a promise is broken.
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

# Two connections, and both shapes of an event. Rows of the second path, and all of a peer's, are sent once: what is
# missed between one connection and the next is not healed by the event after it.
WANTED = {
    "/real-time/crowd-sentiment": ("AAPL", "TSLA", "ON", "6E_F", "CMGO"),
    "market-prophit-sentiment": ("EURAUD", "GOOG", "MSFT", "IBM", "EBAY"),
}
TICKERS = [ticker for tickers in WANTED.values() for ticker in tickers]
WINDOW_ROWS = 3  # of an event of the simulator's on the first path, of which one is new
TOKEN_SECONDS = 20
RESTATED_TICKS = 50  # between two restatements of all tickers
WARM_SECONDS = 20  # after which memory and descriptors are what they should stay
SPACING_SECONDS = 5.0
DRAIN_SECONDS = 60
GROWTH_MIB = 112  # SQLite's page cache is filled, 64 of them, and so is the memory of values known
GROWTH_DESCRIPTORS = 3  # a second connection, and a login, may be under way at either moment
LOOK_SECONDS = 0.25
PRINT_SECONDS = 30


class Server(Protocol):
    """A simulator or a peer."""

    api_key: str

    @property
    def url(self) -> str: ...

    @property
    def login_times(self) -> Any: ...

    @property
    def emitted(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Look:
    """The daemon at one moment."""

    at: float  # time.monotonic()
    mib: float  # resident
    open_descriptors: int
    cpu_seconds: float


class Account:
    """What the server has said so far; the events themselves are not kept."""

    def __init__(self, server: Server) -> None:
        self.events = 0
        self.values: dict[Key, list[float]] = defaultdict(list)
        self._server = server

    def take(self) -> None:
        """Note what was emitted since."""
        emitted: list[Emitted] = list(self._server.emitted)
        self._server.emitted.clear()
        for emission in emitted:
            expected_rows.add(emission, self.values)
        self.events += len(emitted)


class Table:
    """The figures, and whether each is as promised."""

    def __init__(self) -> None:
        self.kept = True

    def tell(self, name: str, figure: object, promise: str = "", kept: bool = True) -> None:
        self.kept &= kept
        print(f"{name:44} {figure!s:>26}   {promise}{'' if kept else '  BROKEN'}".rstrip(), flush=True)

    def none(self, name: str, count: int) -> None:
        """There must be none of these."""
        self.tell(name, count, "none", not count)


async def soak(server: Server, folder: Path, *, minutes: float, rate: float) -> bool:
    """Whether all was kept."""
    config = write_config(
        folder,
        url=server.url,
        database_url=f"sqlite:///{folder / 'ingestor.db'}",
        subscriptions=WANTED,
    )
    account, table = Account(server), Table()
    async with DaemonProcess(config, server.api_key) as daemon:
        await daemon.wait_until_live()
        began = time.monotonic()
        looks = await watch(daemon, account, minutes * 60)
        table.tell("minutes", f"{(time.monotonic() - began) / 60:.1f}")
        await silence(server)
        await asyncio.sleep(0.5)  # what is on its way arrives
        account.take()
        spool = daemon.status["spool"]
        await until(lambda: daemon.status["spool"]["acked_seq"] >= spool["head_seq"], DRAIN_SECONDS)
        assert await daemon.terminate(timeout_seconds=20) == 0, daemon.stderr[-2000:]
    tell_usage(table, looks)
    tell_received(table, account, daemon.db, rate * minutes * 60)
    tell_coverage(table, daemon.db)
    tell_renewals(table, daemon.db, server.login_times, minutes * 60)
    await tell_audit(table, config)
    return table.kept


async def watch(daemon: DaemonProcess, account: Account, seconds: float) -> list[Look]:
    """Look at the daemon until the time is over, and say now and then what is seen."""
    looks: list[Look] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        account.take()
        pid = daemon.pid
        looks.append(Look(time.monotonic(), resident_mib(pid), open_descriptors(pid), cpu_seconds(pid)))
        if len(looks) % round(PRINT_SECONDS / LOOK_SECONDS) == 1:
            last = looks[-1]
            print(
                f"{account.events} events, {last.mib:.0f} MiB resident, {last.open_descriptors} descriptors", flush=True
            )
        await asyncio.sleep(LOOK_SECONDS)
    return looks


async def silence(server: Server) -> None:
    """Have the server send nothing more."""
    for ticker in TICKERS:
        if isinstance(server, FaultySimulator):
            server.mute(ticker)
        elif isinstance(server, NodeServer):
            await server.run_command("mute", ticker=ticker)


# What is reckoned.


def tell_usage(table: Table, looks: list[Look]) -> None:
    first = next((one for one in looks if one.at > looks[0].at + WARM_SECONDS), looks[0])
    half, last = looks[len(looks) // 2], looks[-1]
    cpu = 100 * (last.cpu_seconds - first.cpu_seconds) / max(last.at - first.at, 1e-9)
    table.tell("CPU of the daemon, % of a core", f"{cpu:.1f}")
    table.tell(
        "MiB resident, warm, half-way, at the end",
        f"{first.mib:.1f}, {half.mib:.1f}, {last.mib:.1f}",
        f"at most {GROWTH_MIB} more",
        last.mib - first.mib <= GROWTH_MIB,
    )
    table.tell(
        "descriptors, warm and at the end",
        f"{first.open_descriptors}, {last.open_descriptors}",
        f"at most {GROWTH_DESCRIPTORS} more",
        last.open_descriptors - first.open_descriptors <= GROWTH_DESCRIPTORS,
    )


def tell_received(table: Table, account: Account, db: DbReader, wanted: float) -> None:
    sent, current = account.values, db.current()
    table.tell("events sent", account.events, f"at least 90 % of {wanted:.0f}", account.events >= 0.9 * wanted)
    table.tell("events stored", db.scalar("SELECT count(*) FROM payloads"))
    table.tell("samples sent", len(sent), "some", bool(sent))
    table.none("samples missing", len(sent.keys() - current.keys()))
    table.none("samples that nobody sent", len(current.keys() - sent.keys()))
    wrong = sum(current[key] != values[-1] for key, values in sent.items() if key in current)
    table.none("samples with another value than the last", wrong)
    tell_revisions(table, sent, db.revisions())
    tell_rows(table, db, len(current))


def tell_revisions(table: Table, sent: Mapping[Key, list[float]], found: Mapping[Key, list[float]]) -> None:
    replaced = {(key, value) for key, values in sent.items() for value in values[:-1]}
    recorded = [(key, value) for key, values in found.items() for value in values]
    table.tell("values restated", len(replaced))
    table.none("revisions missing", len(replaced - set(recorded)))
    table.none("revisions that nobody sent", len(set(recorded) - replaced))
    table.none("revisions recorded twice", len(recorded) - len(set(recorded)))


def tell_rows(table: Table, db: DbReader, samples: int) -> None:
    outcomes = ("new", "revised", "duplicate", "dead")
    columns = ", ".join(f"sum({one}_rows) AS {one}" for one in outcomes)
    (rows,) = db.rows(f"SELECT {columns} FROM batches")
    received = db.scalar("SELECT sum(row_count) FROM payloads")
    table.tell("rows new", rows["new"], "as many as samples", rows["new"] == samples)
    table.tell("rows revised", rows["revised"])
    table.tell("rows duplicate", rows["duplicate"], "whatever came again", rows["duplicate"] > 0)
    table.none("rows dead", rows["dead"])
    table.tell("rows received", received, "the same together", received == sum(rows.values()))
    db.assert_consistent()  # says itself what does not balance


def tell_coverage(table: Table, db: DbReader) -> None:
    lives = {" ".join(db.states(ticker)) for ticker in TICKERS}
    table.tell("states of each subscription", "; ".join(lives), "live once", lives == {"pending live stopped"})
    firsts = "SELECT min(started_at) AS first FROM coverage WHERE state = 'live' GROUP BY subscription_id"
    table.none(
        "gaps since all were live",
        db.scalar(f"SELECT count(*) FROM gaps WHERE to_at > (SELECT max(first) FROM ({firsts}))"),
    )
    lost = db.scalar("SELECT count(*) FROM events WHERE kind IN ('disconnected', 'connect_failed')")
    table.none("connections lost or refused", lost)


def tell_renewals(table: Table, db: DbReader, login_times: Sequence[float], seconds: float) -> None:
    renewals = db.scalar("SELECT count(*) FROM events WHERE kind = 'connected'") - len(WANTED)
    least = len(WANTED) * (int(seconds / TOKEN_SECONDS) - 1)
    table.tell("renewals", renewals, f"at least {least}", renewals >= least)
    closest = min((later - earlier for earlier, later in pairwise(login_times)), default=float("inf"))
    promise = f"at least {SPACING_SECONDS:g}"
    table.tell("seconds between two logins, least", f"{closest:.2f}", promise, closest >= SPACING_SECONDS)


async def tell_audit(table: Table, config: Path) -> None:
    async with CommandProcess("audit", "--config", config, folder=config.parent) as audit:
        code = await audit.wait_for_exit(timeout_seconds=120)
    table.none("exit code of audit", code)


def generation_of(version: str) -> str:
    """What a peer calls it; for argparse. ``version``: its beginning is enough."""
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
