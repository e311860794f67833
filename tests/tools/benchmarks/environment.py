"""The environment of one measurement: a load generator, an empty folder, an empty database."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ingestor.core.version import source_commit
from tests.support.postgres_server import Postgres, fresh_database
from tests.tools.benchmarks.load_generator import LoadGenerator

SQLITE, POSTGRES, NO_DATABASE = "SQLite", "PostgreSQL", ""
TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Environment:
    load: LoadGenerator
    folder: Path
    database_url: str = ""
    server_pid: int = 0  # of PostgreSQL


# Returns figures by name; the name of a single figure is "".
Measure = Callable[[Environment], dict[str, float]]


@contextmanager
def open_environment(database: str, server: Postgres) -> Iterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, LoadGenerator() as load:
        folder = Path(name)
        if database == POSTGRES:
            with fresh_database(server.url()) as url:
                yield Environment(load, folder, url, server.pid)
        else:
            yield Environment(load, folder, f"sqlite:///{folder / 'x.db'}" if database == SQLITE else "")


def until(condition: Callable[[], object], timeout_seconds: float = TIMEOUT_SECONDS) -> float:
    """Wait until the condition holds and return the monotonic time. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def describe_machine() -> str:
    """Return the date, the commit, the processor, and the releases of Python and Node."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {source_commit()}, {os.cpu_count()} cores"
        f"{f' ({model[1].strip()})' if model else ''}, Python {platform.python_version()}, Node {node}"
    )


def describe_databases(server: Postgres) -> str:
    """Return the releases of the databases."""
    ((postgres,),) = server.execute("SHOW server_version")
    return f"PostgreSQL {postgres.split()[0]}, SQLite {sqlite3.sqlite_version}"
