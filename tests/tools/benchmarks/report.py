"""Report results as Markdown: goals, then for each case its figures, as medians and spreads of the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.tools.benchmarks.cases import Case, Goal

PAGE = """# Benchmarks

Written by `make bench`: medians of the rounds, in parentheses minimum and maximum. {conditions}

- A ratio is one within a round, in which every subject is measured once. Compare only figures of one page: they drift
  with the machine, whose cores the load generator, the program and the database share.
- *client* is the processor time of the measured program, *database* that of all processes of PostgreSQL. SQLite works
  inside the client.
- *bytes on disk* are all tables with their indexes. Ours hold the provider's texts and a ledger as well; those of the
  bare script its texts; all others ticker, time and value only.

![Rate, processor time and bytes on disk of an event, beside other programs](benchmarks.png)

## Goals

{table}
"""


@dataclass
class Result:
    """The figures of a case, by subject and name, one value per round, and why subjects could not be measured."""

    case: Case
    figures: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, subject: str, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault((subject, name), []).append(value)

    @property
    def measured(self) -> list[str]:
        """The subjects with figures."""
        return list(dict.fromkeys(subject for subject, _ in self.figures))

    @property
    def names(self) -> list[str]:
        """The names of the figures of all subjects."""
        return list(dict.fromkeys(name for _, name in self.figures))

    def median(self, subject: str, name: str) -> float:
        """Return 0 if there is no such figure."""
        return statistics.median(self.figures.get((subject, name), [0.0]))

    def values(self, goal: Goal) -> list[float]:
        """Return one value per round: the goal's figure, or its ratio to the other subject's figure of that round."""
        figures = self.figures.get((goal.subject, goal.figure), [])
        if not goal.against:
            return figures
        others = self.figures.get((goal.against, goal.figure), [])
        return [figure / other for figure, other in zip(figures, others, strict=False)]

    def best(self, goal: Goal) -> float | None:
        """Return the best value of all rounds, because disturbances make a measurement worse, hardly ever better."""
        values = self.values(goal)
        if not values:
            return None
        return max(values) if goal.direction == "at least" else min(values)


def page(results: Sequence[Result], conditions: str) -> str:
    """Return the page for the documentation; ``conditions`` says when, and on what it was measured."""
    return PAGE.format(conditions=conditions, table=table(results))


def table(results: Sequence[Result]) -> str:
    """Return a table of all goals, and a table of figures for each case."""
    lines = ["| goal | wanted | measured | reached |", "|---|---:|---:|---|"]
    for result in results:
        lines += [_goal(result, goal) for goal in result.case.goals if result.values(goal)]
    for result in results:
        lines += ["", f"## {result.case.title[0].upper()}{result.case.title[1:]}", "", *_figures(result)]
    return "\n".join(lines)


def _goal(result: Result, goal: Goal) -> str:
    values, times = result.values(goal), " ×" if goal.against else ""
    what = [result.case.title, f"{goal.subject} against {goal.against}" if goal.against else goal.subject, goal.figure]
    bound = f"{'≥' if goal.direction == 'at least' else '≤'} {number(goal.bound)}{times}"
    reached = "yes" if goal.reached(statistics.median(values)) else "no"
    return f"| {': '.join(filter(None, what))} | {bound} | {_spread(values, times)} | {reached} |"


def _figures(result: Result) -> Iterator[str]:
    yield f"| | {' | '.join(name or result.case.unit for name in result.names)} |"
    yield "|---|" + "---:|" * len(result.names)
    for subject in result.measured:
        cells = (_spread(result.figures.get((subject, name), [])) for name in result.names)
        yield f"| {subject} | {' | '.join(cells)} |"
    for subject, why in result.failures.items():
        yield f"| {subject} | not measured: {why} |"


def _spread(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return ""
    spread = f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else ""
    return f"{number(statistics.median(values))}{unit}{spread}"


def number(value: float) -> str:
    """Return a number with three digits, or all that are before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
