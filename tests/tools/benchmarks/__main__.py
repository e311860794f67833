"""``python -m tests.tools.benchmarks``: ours beside what others would use, in one go, and what the daemon takes.

Every round measures every subject once, so that all meet the same machine; what is compared is compared within a round.
A Markdown table on stdout, table and chart in the folder named by ``--out``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.support.postgres_server import find_binaries, own_server
from tests.tools.benchmarks.cases import Case, cases, guards
from tests.tools.benchmarks.chart import draw
from tests.tools.benchmarks.report import Result, table
from tests.tools.benchmarks.stage import Measure, stage

BUDGET_SECONDS = {"quick": 300.0, "full": 1500.0, "long": 5400.0}
GUARD_ROUNDS = 3

console = Console(stderr=True)


class Run:
    """Rounds of measurements, until done or out of time."""

    def __init__(self, chosen: Sequence[Case], server_url: str, budget_seconds: float) -> None:
        self.results = [Result(case) for case in chosen]
        self._server_url = server_url
        self._deadline = time.monotonic() + budget_seconds

    def rounds(self, count: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            total = count * sum(len(result.case.subjects) for result in self.results)
            task = progress.add_task("", total=total)
            for _ in range(count):
                for result in self.results:
                    for name, measure in result.case.subjects.items():
                        progress.update(task, description=f"{result.case.name}: {name}")
                        self._measure(result, name, measure)
                        progress.advance(task)

    def _measure(self, result: Result, name: str, measure: Measure) -> None:
        if name in result.failures:
            return
        if time.monotonic() > self._deadline:
            if not any(figure.startswith(name) for figure in result.figures):
                result.failures[name] = "there was no time left"
            return
        try:
            with stage(result.case.database, self._server_url) as one:
                figures = measure(one)
        except Exception as error:  # whatever it is, the others are measured all the same
            result.failures[name] = f"{type(error).__name__}: {error}"[:200]
            console.print(f"{result.case.name}: {name}: {error!r}", style="red", markup=False)
            return
        result.take(name, figures)
        told = "  ".join(f"{key} {value:,.1f}".strip() for key, value in figures.items())
        load = os.getloadavg()[0]
        console.print(f"{result.case.name}: {name}: {told} {result.case.unit} (load {load:.1f})", markup=False)


def guard(run: Run) -> int:
    """Rounds until every ratio is reached once: 0, or 1 if one was not in any of them."""
    for _ in range(GUARD_ROUNDS):
        run.rounds(1)
        if not (missed := _missed(run.results)):
            return 0
        run.results = [result for result in run.results if result.case.name in missed]
        for result in run.results:
            result.failures.clear()  # a busy machine has another try
    return 1


def _missed(results: Sequence[Result]) -> set[str]:
    return {
        result.case.name
        for result in results
        for goal in result.case.goals
        if (best := result.best(goal)) is None or not goal.reached(best)
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.benchmarks", description=__doc__)
    names = [case.name for case in cases(quick=True)]
    parser.add_argument("--quick", action="store_true", help="a fifth of the events, one round: a look")
    parser.add_argument("--guard", action="store_true", help="a few ratios only; exit 1 if one is not reached")
    parser.add_argument("--long", action="store_true", help="ten minutes of load and 5 million entries as well")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--rounds", type=int, help="how often each is measured (default 3; quick 1)")
    parser.add_argument("--out", type=Path, help="folder for benchmarks.md and benchmarks.png")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Case]:
    if options.guard:
        return guards()
    every = cases(quick=options.quick)
    if options.only:
        return [case for case in every if case.name in options.only]
    return [case for case in every if options.long or not case.long]


def main() -> int:
    options = _options()
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL is not installed: the benchmarks need its binaries")
    budget = BUDGET_SECONDS["long" if options.long else "quick" if options.quick or options.guard else "full"]
    with own_server(binaries, fsync=True) as server:
        run = Run(_chosen(options), server.url(), budget)
        every = list(run.results)
        if options.guard:
            code = guard(run)
        else:
            run.rounds(options.rounds or (1 if options.quick else 3))
            code = 0
    print(table(every))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmarks.md").write_text(table(every) + "\n")
        draw(every, options.out / "benchmarks.png")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
