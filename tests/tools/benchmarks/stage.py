"""What one measurement is made with: a load generator, an empty folder, an empty database."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.postgres_server import fresh_database
from tests.tools.benchmarks.load import Load

SQLITE, POSTGRES = "SQLite", "PostgreSQL"
TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Stage:
    load: Load
    folder: Path
    database_url: str


# Figures by name; "" where there is only one.
Measure = Callable[[Stage], dict[str, float]]


@contextmanager
def stage(database: str, server_url: str) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Load() as load:
        folder = Path(name)
        if database == SQLITE:
            yield Stage(load, folder, f"sqlite:///{folder / 'x.db'}")
            return
        with fresh_database(server_url) as url:
            yield Stage(load, folder, url)


def until(true: Callable[[], object], timeout_seconds: float = TIMEOUT_SECONDS) -> float:
    """Wait until it holds; the monotonic time then. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)
    return time.monotonic()
