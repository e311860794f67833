"""Measures of the installed daemon: events per second from the first push to the commit of the last row.

Each fails if a row is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg

from tests.tools.benchmarks.committed_rows import CommittedRows
from tests.tools.benchmarks.environment import Environment, until
from tests.tools.benchmarks.installed_daemon import Daemon
from tests.tools.benchmarks.load_generator import BAD_VALUE
from tests.tools.benchmarks.meter import Meter


@dataclass(frozen=True, slots=True)
class Throughput:
    """One daemon, and events of new rows; ``rolling``: of windows, and the rate is that of the rows offered."""

    events: int
    rows: int = 1
    rolling: bool = False
    tickers: int = 1
    spool_settings: str = ""

    def __call__(self, environment: Environment) -> dict[str, float]:
        with Daemon(environment, tickers=self.tickers, spool_settings=self.spool_settings) as daemon:
            environment.load.prepare(self.events, self.rows, rolling=self.rolling)
            offered = self.events * self.rows
            figures = _push(environment, [daemon], offered, offered if self.rolling else self.events)
            new = self.events + self.tickers * (self.rows - 1) if self.rolling else offered
            _require(daemon.tables, "samples", new)
            return figures | {"peak MiB": daemon.peak_mib}


@dataclass(frozen=True, slots=True)
class TwoDaemons:
    """Two daemons that receive the same events, and write them into one PostgreSQL."""

    events: int

    def __call__(self, environment: Environment) -> dict[str, float]:
        second = replace(environment, folder=environment.folder / "second")
        second.folder.mkdir()
        with Daemon(environment) as one, Daemon(second) as other:
            until(lambda: one.tables.scalar("SELECT count(*) FROM instances") == 2)
            environment.load.prepare(self.events)
            figures = _push(environment, [one, other], 2 * self.events, self.events)
            _require(one.tables, "samples", self.events)
            return figures


@dataclass(frozen=True, slots=True)
class Restated:
    """Every other event is a new value for a row that was committed before."""

    events: int

    def __call__(self, environment: Environment) -> dict[str, float]:
        half = self.events // 2
        with Daemon(environment) as daemon:
            environment.load.prepare(half)
            _push(environment, [daemon], half, half)
            environment.load.prepare(2 * half, restated=True)
            figures = _push(environment, [daemon], 2 * half, 2 * half)
            _require(daemon.tables, "samples", 2 * half)
            _require(daemon.tables, "revisions", half)
            return figures


@dataclass(frozen=True, slots=True)
class BadRows:
    """One row in so many is rejected by PostgreSQL, whose owner has added a constraint."""

    events: int
    bad_every: int

    def __call__(self, environment: Environment) -> dict[str, float]:
        bad = -(-self.events // self.bad_every)
        with Daemon(environment) as daemon:
            with psycopg.connect(environment.database_url) as owner:
                owner.execute(f"ALTER TABLE samples ADD CHECK (value <> {BAD_VALUE})".encode())
            environment.load.prepare(self.events, bad_every=self.bad_every)
            figures = _push(environment, [daemon], self.events, self.events)
            _require(daemon.tables, "samples", self.events - bad)
            _require(daemon.tables, "dead_letters", bad)
            return figures


def _push(environment: Environment, daemons: Sequence[Daemon], rows: int, units: int) -> dict[str, float]:
    """Push what was prepared, and measure until so many further rows are committed."""
    tables = daemons[0].tables
    wanted = tables.row_count() + rows
    meter = Meter(environment, tables, *(daemon.pid for daemon in daemons))
    environment.load.push()
    until(lambda: tables.row_count() >= wanted)
    return meter.figures(units)


def _require(tables: CommittedRows, table: str, expected: int) -> None:
    found = tables.scalar(f"SELECT count(*) FROM {table}")
    if found != expected:
        raise RuntimeError(f"{found} {table} instead of {expected}")
