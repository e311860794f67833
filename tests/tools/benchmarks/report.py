"""What was measured, as text: a Markdown table of medians and spreads, and of goals as ratios within one round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.tools.benchmarks.cases import GENERATOR, Case, Goal


@dataclass
class Result:
    """One case's figures, a value a round, and why there are none where there are none."""

    case: Case
    figures: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def take(self, subject: str, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault(f"{subject}, {name}" if name else subject, []).append(value)

    @property
    def rates(self) -> dict[str, list[float]]:
        """The principal figure of each subject that is compared: the load's own only shows that it is not the limit."""
        wanted = self.case.subjects.keys() - {GENERATOR}
        return {name: values for name, values in self.figures.items() if name in wanted}

    def values(self, goal: Goal) -> list[float]:
        """What the goal is about, a value a round: the figure, or its ratio to the other subject's of that round."""
        mine = self.figures.get(goal.figure, [])
        if not goal.against:
            return mine
        return [one / other for one, other in zip(mine, self.figures.get(goal.against, []), strict=False)]

    def best(self, goal: Goal) -> float | None:
        """Of all rounds: what disturbs a measurement makes it worse, hardly ever better."""
        values = self.values(goal)
        if not values:
            return None
        return max(values) if goal.direction == "at least" else min(values)


def table(results: Sequence[Result]) -> str:
    """Every figure, and below it every goal."""
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
            about = f"{goal.figure} against {goal.against}" if goal.against else goal.figure
            median = statistics.median(values)
            lines.append(
                f"| {result.case.title}: {about} | {sign} {goal.bound:g}{unit} | {_text(median)}{unit}"
                f" | {_text(min(values))}–{_text(max(values))} | {'yes' if goal.reached(median) else 'no'} |"
            )
    return lines


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
