"""Decide when a batch is ready. Knows nothing of clocks, files or databases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """How large a batch may be, and how long an entry may wait for others before a partial batch is written."""

    max_rows: int
    max_wait_seconds: float
    already_waited_seconds: float = 0.0  # by an entry when the writer first sees it
    max_bytes: int = 8 << 20  # of raw text: frames without new rows have a size as well

    def full(self, *, rows: int, size_bytes: int) -> bool:
        return rows >= self.max_rows or size_bytes >= self.max_bytes

    def entries_to_full(self, *, rows: int, entries: int) -> int:
        """Estimate how many more entries make the batch full, from those in it: the writer need not wake for fewer."""
        return max((self.max_rows - rows) * entries // rows, 1) if rows else 1

    def wait_seconds(self, *, rows: int, age_seconds: float, idle_seconds: float) -> float:
        """Return how long to wait for an entry: the rest of ``max_wait_seconds``, or ``idle_seconds`` without rows."""
        return max(self.max_wait_seconds - self.already_waited_seconds - age_seconds, 0.0) if rows else idle_seconds
