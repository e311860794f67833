"""Report results as Markdown: a table of medians and spreads, and a table of goals as ratios within one round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.tools.benchmarks.cases import GENERATOR, Case, Goal


@dataclass
class Result:
    """The figures of a case, one value per round, and the reasons why subjects could not be measured."""

    case: Case
    figures: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, subject: str, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault(f"{subject}, {name}" if name else subject, []).append(value)

    @property
    def rates(self) -> dict[str, list[float]]:
        """The main figure of each compared subject, without the load generator, which is only shown as the limit."""
        subjects = self.case.subjects.keys() - {GENERATOR}
        return {name: values for name, values in self.figures.items() if name in subjects}

    def values(self, goal: Goal) -> list[float]:
        """Return one value per round: the goal's figure, or its ratio to the other subject's figure of that round."""
        figures = self.figures.get(goal.figure, [])
        if not goal.against:
            return figures
        return [figure / other for figure, other in zip(figures, self.figures.get(goal.against, []), strict=False)]

    def best(self, goal: Goal) -> float | None:
        """Return the best value of all rounds, because disturbances make a measurement worse, hardly ever better."""
        values = self.values(goal)
        if not values:
            return None
        return max(values) if goal.direction == "at least" else min(values)


def table(results: Sequence[Result]) -> str:
    """Return a table of all figures, followed by a table of all goals."""
    lines = ["| measured | figure | median | min–max | rounds |", "|---|---|---:|---:|---:|"]
    for result in results:
        for name, values in result.figures.items():
            spread = f"{_text(min(values))}–{_text(max(values))}"
            title = f"{result.case.title} ({result.case.unit})" if result.case.unit else result.case.title
            lines.append(f"| {title} | {name} | {_text(statistics.median(values))} | {spread} | {len(values)} |")
        lines += [
            f"| {result.case.title} | {name} | not measured: {why} | | 0 |" for name, why in result.failures.items()
        ]
    return "\n".join([*lines, "", *_goals(results)])


def _goals(results: Sequence[Result]) -> list[str]:
    lines = ["| goal | wanted | median | min–max | reached |", "|---|---:|---:|---:|---|"]
    for result in results:
        for goal in result.case.goals:
            values = result.values(goal)
            if not values:
                continue
            unit = " ×" if goal.against else ""
            sign = "≥" if goal.direction == "at least" else "≤"
            subject = f"{goal.figure} against {goal.against}" if goal.against else goal.figure
            median = statistics.median(values)
            lines.append(
                f"| {result.case.title}: {subject} | {sign} {goal.bound:g}{unit} | {_text(median)}{unit}"
                f" | {_text(min(values))}–{_text(max(values))} | {'yes' if goal.reached(median) else 'no'} |"
            )
    return lines


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
