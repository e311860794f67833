"""``python -m tests.benchmarks``: measure ours and the naive script side by side, and print a Markdown table."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.benchmarks.load import Load
from tests.benchmarks.subjects import Subject, naive, ours
from tests.support.postgres import Postgres, find_binaries, fresh_database


@dataclass
class Figure:
    """Events per second of one subject on one database."""

    name: str
    database: str
    subject: Subject
    events: int
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


@contextmanager
def _postgres() -> Iterator[str]:
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL is not installed: the benchmark needs its binaries")
    server = Postgres(binaries, fsync=True)
    try:
        server.start()
        yield server.url()
    finally:
        server.close()


def _measure(figure: Figure, server_url: str) -> None:
    with tempfile.TemporaryDirectory() as name, Load() as load:
        folder = Path(name)
        if figure.database == "SQLite":
            seconds = figure.subject(load, f"sqlite:///{folder / 'x.db'}", folder, events=figure.events, rows=1)
        else:
            with fresh_database(server_url) as url:
                seconds = figure.subject(load, url, folder, events=figure.events, rows=1)
    figure.rates.append(figure.events / seconds)


def _table(figures: list[Figure]) -> str:
    lines = ["| one-row events per second until committed | median | min–max | against naive |", "|---|---|---|---|"]
    for one in figures:
        base = next(other for other in figures if other.name == "naive" and other.database == one.database)
        spread = f"{min(one.rates):,.0f}–{max(one.rates):,.0f}"
        lines.append(
            f"| {one.name}, {one.database} | {one.median:,.0f} | {spread} | {one.median / base.median:.1f} × |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, interleaved (default 3)")
    parser.add_argument("--events", type=int, default=100_000, help="events for ours; naive gets a fiftieth")
    options = parser.parse_args()
    figures = [
        Figure(name, database, subject, events)
        for database in ("SQLite", "PostgreSQL")
        for name, subject, events in (("ours", ours, options.events), ("naive", naive, options.events // 50))
    ]
    with _postgres() as server_url, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=options.rounds * len(figures))
        for _ in range(options.rounds):
            for figure in figures:
                _measure(figure, server_url)
                progress.advance(bar)
    print(_table(figures))


if __name__ == "__main__":
    main()
