"""What the writer reports about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class WriterStatus:
    """Counters and state of the writer. Other threads read it, so every field is replaced as a whole."""

    position: int = 0
    rewound_to: int = 0  # entries up to here are written again, because the database went back in time; 0: none are
    batches: int = 0
    new: int = 0
    revised: int = 0
    duplicate: int = 0
    dead_at_decode: int = 0
    dead_at_insert: int = 0
    expired: int = 0
    database_up: bool = False
    error: str | None = None
    server: str = ""  # host:port of the PostgreSQL server that answered last
    failed_attempts: int = 0  # in a row
    retry_boottime: float = 0.0  # when the next attempt begins, if ``failed_attempts``
    committed_at: float | None = None  # time.time()
    publish_skew_seconds: Mapping[str, float] = field(default_factory=dict)  # by feed; negative: behind our clock
    oldest_us: int | None = None  # receipt of the oldest entry that was read and is not committed; None: no such entry
