"""Decide when a batch is due. Knows nothing of clocks, files or databases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """How much company an entry waits for, and how long."""

    max_rows: int
    max_wait_seconds: float

    def full(self, rows: int) -> bool:
        return rows >= self.max_rows

    def due(self, *, rows: int, age_seconds: float) -> bool:
        return self.full(rows) or (rows > 0 and age_seconds >= self.max_wait_seconds)

    def patience_seconds(self, *, rows: int, age_seconds: float, idle_seconds: float) -> float:
        """How long to wait for another entry: for company if something waits already, else ``idle_seconds``."""
        return max(self.max_wait_seconds - age_seconds, 0.0) if rows else idle_seconds
