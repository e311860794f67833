"""A long ordinary time by hand: ``python -m tests.soak --minutes 10 --rate 500 --peer 4.8``.

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
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from ingestor.provider.simulator import Simulator

from .support import expected
from .support.daemon import Daemon, Program, until, write_config
from .support.expected import Emitted, Key
from .support.peer import VERSIONS, Peer
from .support.usage import cpu_seconds, descriptors, resident_mib

PATH = "/real-time/crowd-sentiment"
TICKERS = ("AAPL", "TSLA", "ON", "6E_F", "CMGO", "EURAUD", "GOOG", "MSFT", "IBM", "EBAY")
WINDOW_ROWS = 3  # of an event; one of them is new
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
    def logins_at(self) -> Any: ...

    @property
    def emitted(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Look:
    """The daemon at one moment."""

    at: float  # time.monotonic()
    mib: float  # resident
    descriptors: int
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
            expected.add(emission, self.values)
        self.events += len(emitted)


class Table:
    """The figures, and whether each is as promised."""

    def __init__(self) -> None:
        self.kept = True

    def tell(self, name: str, figure: object, kept: bool = True, promise: str = "") -> None:
        self.kept &= kept
        print(f"{name:42} {figure!s:>24}   {promise}{'' if kept else '  BROKEN'}".rstrip(), flush=True)


async def soak(server: Server, folder: Path, *, minutes: float, rate: float) -> bool:
    """Whether all was kept."""
    config = write_config(
        folder,
        url=server.url,
        database_url=f"sqlite:///{folder / 'ingestor.db'}",
        subscriptions={PATH: TICKERS},
    )
    account, table = Account(server), Table()
    async with Daemon(config, server.api_key) as daemon:
        await daemon.live()
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
    tell_received(table, account, daemon, rate * minutes * 60)
    tell_listening(table, daemon, server, minutes * 60)
    await tell_audit(table, config)
    return table.kept


async def watch(daemon: Daemon, account: Account, seconds: float) -> list[Look]:
    """Look at the daemon until the time is over, and say now and then what is seen."""
    looks: list[Look] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        account.take()
        pid = daemon.pid
        looks.append(Look(time.monotonic(), resident_mib(pid), descriptors(pid), cpu_seconds(pid)))
        if len(looks) % round(PRINT_SECONDS / LOOK_SECONDS) == 1:
            last = looks[-1]
            print(f"{account.events} events, {last.mib:.0f} MiB resident, {last.descriptors} descriptors", flush=True)
        await asyncio.sleep(LOOK_SECONDS)
    return looks


async def silence(server: Server) -> None:
    """Have the server send nothing more."""
    for ticker in TICKERS:
        if isinstance(server, Simulator):
            server.mute(ticker)
        elif isinstance(server, Peer):
            await server.do("mute", ticker=ticker)


# What is reckoned.


def tell_usage(table: Table, looks: list[Look]) -> None:
    first = next((one for one in looks if one.at > looks[0].at + WARM_SECONDS), looks[0])
    half, last = looks[len(looks) // 2], looks[-1]
    few = f"at most {GROWTH_DESCRIPTORS} more"
    cpu = 100 * (last.cpu_seconds - first.cpu_seconds) / max(last.at - first.at, 1e-9)
    table.tell("CPU of the daemon, % of a core", f"{cpu:.1f}")
    table.tell(
        "MiB resident, warm, half-way, at the end",
        f"{first.mib:.1f}, {half.mib:.1f}, {last.mib:.1f}",
        last.mib - first.mib <= GROWTH_MIB,
        f"at most {GROWTH_MIB} more",
    )
    grown = last.descriptors - first.descriptors
    table.tell(
        "descriptors, warm and at the end", f"{first.descriptors}, {last.descriptors}", grown <= GROWTH_DESCRIPTORS, few
    )


def tell_received(table: Table, account: Account, daemon: Daemon, wanted: float) -> None:
    books = daemon.books
    current, revisions = books.current(), books.revisions()
    table.tell("events sent", account.events, account.events >= 0.9 * wanted, f"at least 90 % of {wanted:.0f}")
    table.tell("events stored", books.one("SELECT count(*) FROM payloads"))
    table.tell("samples sent", len(account.values), bool(account.values))
    nothing = "none"
    missing, strange = account.values.keys() - current.keys(), current.keys() - account.values.keys()
    wrong = [key for key, values in account.values.items() if key in current and current[key] != values[-1]]
    table.tell("samples missing", len(missing), not missing, nothing)
    table.tell("samples that nobody sent", len(strange), not strange, nothing)
    table.tell("samples with another value than the last", len(wrong), not wrong, nothing)
    tell_revisions(table, account.values, revisions)
    tell_rows(table, daemon, len(current))


def tell_revisions(table: Table, sent: Mapping[Key, list[float]], found: Mapping[Key, list[float]]) -> None:
    replaced = {(key, value) for key, values in sent.items() for value in values[:-1]}
    recorded = [(key, value) for key, values in found.items() for value in values]
    lost, strange = replaced - set(recorded), set(recorded) - replaced
    table.tell("values restated", len(replaced))
    table.tell("revisions missing", len(lost), not lost, "none")
    table.tell("revisions that nobody sent", len(strange), not strange, "none")
    table.tell(
        "revisions recorded twice", len(recorded) - len(set(recorded)), len(recorded) == len(set(recorded)), "none"
    )


def tell_listening(table: Table, daemon: Daemon, server: Server, seconds: float) -> None:
    books = daemon.books
    states = {tuple(books.states(ticker)) for ticker in TICKERS}
    kept = states == {("pending", "live", "stopped")}
    table.tell(
        "states of the subscriptions", " ".join(sorted({one for each in states for one in each})), kept, "one span"
    )
    live = "SELECT max(started_at) AS live_at FROM coverage WHERE state = 'live'"
    gaps = books.one(f"SELECT count(*) FROM gaps WHERE to_at > ({live})")
    table.tell("gaps in coverage since it was live", gaps, not gaps, "none")
    ends = books.one("SELECT count(*) FROM events WHERE kind IN ('disconnected', 'connect_failed')")
    table.tell("connections lost or refused", ends, not ends, "none: renewed before the kick")
    renewals = books.one("SELECT count(*) FROM events WHERE kind = 'connected'") - 1
    least = int(seconds / TOKEN_SECONDS) - 1
    table.tell("renewals", renewals, renewals >= least, f"at least {least}")
    spaces = [later - earlier for earlier, later in pairwise(server.logins_at)]
    closest = min(spaces, default=float("inf"))
    table.tell(
        "seconds between two logins", f"{closest:.2f}", closest >= SPACING_SECONDS, f"at least {SPACING_SECONDS:g}"
    )


def tell_rows(table: Table, daemon: Daemon, samples: int) -> None:
    outcomes = ("new", "revised", "duplicate", "dead")
    columns = ", ".join(f"sum({one}_rows) AS {one}" for one in outcomes)
    (rows,) = daemon.books.rows(f"SELECT {columns} FROM batches")
    received = daemon.books.one("SELECT sum(row_count) FROM payloads")
    found = "/".join(str(rows[one]) for one in outcomes)
    kept = rows["new"] == samples and rows["dead"] == 0
    table.tell(f"rows {'/'.join(outcomes)}", found, kept, "new: as many as samples; dead: none")
    table.tell("rows received", received, received == sum(rows.values()), "the same together")
    daemon.books.check()  # says itself what does not balance


async def tell_audit(table: Table, config: Path) -> None:
    async with Program("audit", "--config", config, folder=config.parent) as audit:
        code = await audit.ended(timeout_seconds=120)
    table.tell("exit code of audit", code, code == 0, "0")


def server_for(version: str | None, rate: float) -> Simulator | Peer:
    interval_seconds = len(TICKERS) / rate
    if version is not None:
        return Peer(
            next(name for name, full in VERSIONS.items() if full.startswith(version)),
            interval_seconds=interval_seconds,
            window_rows=WINDOW_ROWS,
            lifetime_seconds=TOKEN_SECONDS,
            kick_expired=True,
        )
    return Simulator(
        interval_seconds=interval_seconds,
        step_seconds=60,
        window_seconds=60 * WINDOW_ROWS,
        restate_every=RESTATED_TICKS,
        token_bytes=9300,
        token_lifetime_seconds=TOKEN_SECONDS,
        kick_expired=True,
        record_limit=1_000_000,
    )


async def run(asked: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as name:
        async with server_for(asked.peer, asked.rate) as server:
            return await soak(server, Path(name), minutes=asked.minutes, rate=asked.rate)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long")
    parser.add_argument("--rate", type=float, default=500, help="events a second")
    versions = ", ".join(full for full in VERSIONS.values() if not full.startswith("0."))
    parser.add_argument("--peer", help=f"a real server: {versions}, or the beginning of one")
    return not asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
