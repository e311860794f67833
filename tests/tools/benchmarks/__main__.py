"""``python -m tests.tools.benchmarks``: compare the daemon with other programs, and measure what it uses.

Every round measures every subject once, so that the ratios within a round come from the same machine under the same
load. Prints Markdown tables; ``--out`` names a folder for a page with them, and a chart.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.support.postgres_server import Postgres, find_binaries, own_server
from tests.tools.benchmarks.cases import Case, cases, guards
from tests.tools.benchmarks.chart import draw
from tests.tools.benchmarks.environment import Measure, describe_databases, describe_machine, open_environment
from tests.tools.benchmarks.report import Result, page, table

BUDGET_SECONDS = {"quick": 600.0, "full": 1900.0, "long": 3600.0}
GUARD_ROUNDS = 3

console = Console(stderr=True)


class Run:
    """Rounds of measurements, until all are done or the time budget is used up."""

    def __init__(self, chosen: Sequence[Case], server: Postgres, budget_seconds: float) -> None:
        self.results = [Result(case) for case in chosen]
        self._server = server
        self._deadline = time.monotonic() + budget_seconds

    def run_rounds(self, count: int) -> None:
        """Measure every subject once in each round, those of long cases only in the first."""
        jobs = [
            (result, name, measure)
            for number in range(count)
            for result in self.results
            if number == 0 or not result.case.long
            for name, measure in result.case.subjects.items()
        ]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(jobs))
            for result, name, measure in jobs:
                progress.update(task, description=f"{result.case.name}: {name}")
                self._measure(result, name, measure)
                progress.advance(task)

    def _measure(self, result: Result, name: str, measure: Measure) -> None:
        if name in result.failures:
            return
        if time.monotonic() > self._deadline:
            if name not in result.measured:
                result.failures[name] = "no time left"
            return
        try:
            with open_environment(result.case.database, self._server) as environment:
                figures = measure(environment)
        except Exception as error:  # must not prevent the other measurements
            result.failures[name] = f"{type(error).__name__}: {error}"[:200]
            console.print(f"{result.case.name}: {name}: {error!r}", style="red", markup=False)
            return
        result.add(name, figures)
        summary = "  ".join(f"{key} {value:,.1f}".strip() for key, value in figures.items())
        load = os.getloadavg()[0]
        console.print(f"{result.case.name}: {name}: {summary} {result.case.unit} (load {load:.1f})", markup=False)


def guard(run: Run) -> int:
    """Run rounds until every goal was reached once. Return 1 if a goal was never reached, else 0."""
    for _ in range(GUARD_ROUNDS):
        run.run_rounds(1)
        if not (missed := _missed(run.results)):
            return 0
        run.results = [result for result in run.results if result.case.name in missed]
        for result in run.results:
            result.failures.clear()  # may have failed because the machine was busy
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
    parser.add_argument("--quick", action="store_true", help="a fifth of the events, one round")
    parser.add_argument("--guard", action="store_true", help="a few ratios only; exit with 1 if one is not reached")
    parser.add_argument("--long", action="store_true", help="also ten minutes of load and 5 million entries")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help=f"only these cases: {', '.join(names)}"
    )
    parser.add_argument("--rounds", type=int, help="how often to measure each subject (default 3; quick 1)")
    parser.add_argument("--out", type=Path, help="folder for benchmarks.md and benchmarks.png")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Case]:
    if options.guard:
        return guards()
    all_cases = cases(quick=options.quick)
    if options.only:
        return [case for case in all_cases if case.name in options.only]
    return [case for case in all_cases if options.long or not case.long]


def main() -> int:
    options = _options()
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL is not installed: the benchmarks need its binaries")
    budget = BUDGET_SECONDS["long" if options.long else "quick" if options.quick or options.guard else "full"]
    rounds = options.rounds or (1 if options.quick else 3)
    with own_server(binaries, fsync=True) as server:
        run = Run(_chosen(options), server, budget)
        results = list(run.results)
        code = 0
        if options.guard:
            code = guard(run)
        else:
            run.run_rounds(rounds)
        conditions = f"Rounds: {rounds}. Measured on {describe_machine()}, {describe_databases(server)}."
    print(table(results))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmarks.md").write_text(page(results, conditions))
        draw(results, options.out / "benchmarks.png")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
