"""What a check of `ingestor check` reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CheckResult:
    """The outcome of one check. ``exit_code`` is 0 unless the check failed."""

    name: str
    message: str
    exit_code: int = 0
    warning: bool = False
    seconds: float | None = None  # how long it took, if that is of interest
