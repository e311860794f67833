"""Decide when a batch is due. Knows nothing of clocks, files or databases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """How much company an entry waits for, and how long."""

    max_rows: int
    max_wait_seconds: float
    already_waited_seconds: float = 0.0  # what an entry has waited for company already when it is first seen here
    max_bytes: int = 8 << 20  # of raw text: rows that are known, empty lists and dead frames have a size as well

    def full(self, *, rows: int, size_bytes: int) -> bool:
        return rows >= self.max_rows or size_bytes >= self.max_bytes

    def entries_to_full(self, *, rows: int, entries: int) -> int:
        """How many more entries would make it full, if they are like those in it: nobody need wake for fewer."""
        return max((self.max_rows - rows) * entries // rows, 1) if rows else 1

    def wait_seconds(self, *, rows: int, age_seconds: float, idle_seconds: float) -> float:
        """How long to wait for another entry: for company if something waits already, else ``idle_seconds``."""
        return max(self.max_wait_seconds - self.already_waited_seconds - age_seconds, 0.0) if rows else idle_seconds
