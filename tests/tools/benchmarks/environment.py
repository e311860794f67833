"""The environment of one measurement: a load generator, an empty folder, an empty database."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.postgres_server import fresh_database
from tests.tools.benchmarks.load_generator import LoadGenerator

SQLITE, POSTGRES = "SQLite", "PostgreSQL"
TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Environment:
    load: LoadGenerator
    folder: Path
    database_url: str


# Returns figures by name; the name of a single figure is "".
Measure = Callable[[Environment], dict[str, float]]


@contextmanager
def open_environment(database: str, server_url: str) -> Iterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, LoadGenerator() as load:
        folder = Path(name)
        if database == SQLITE:
            yield Environment(load, folder, f"sqlite:///{folder / 'x.db'}")
            return
        with fresh_database(server_url) as url:
            yield Environment(load, folder, url)


def until(condition: Callable[[], object], timeout_seconds: float = TIMEOUT_SECONDS) -> float:
    """Wait until the condition holds and return the monotonic time. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)
    return time.monotonic()
