"""Measure a program of ``scripts``; its command line and output are described in scripts/__init__.py."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.tools.benchmarks import competitor_installs
from tests.tools.benchmarks.committed_rows import CommittedRows
from tests.tools.benchmarks.environment import TIMEOUT_SECONDS, Environment
from tests.tools.benchmarks.meter import Meter

SCRIPTS = Path(__file__).with_name("scripts")
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Script:
    """Events per second from the first push until the program prints ``done``, and what an event took."""

    name: str
    events: int
    rows: int = 1
    counts: bool = False  # it counts events and writes nothing

    def __call__(self, environment: Environment) -> dict[str, float]:
        database = "-" if self.counts else environment.database_url
        command = [*self._program(), environment.load.url, database, str(self.events), str(self.rows)]
        with _running(command) as process, closing(CommittedRows(environment.database_url)) as tables:
            _wait_for_line(process, "ready")
            environment.load.wait_for_subscriptions()
            environment.load.prepare(self.events, self.rows)
            meter = Meter(environment, tables, process.pid)
            environment.load.push()
            _wait_for_line(process, "done")
            return meter.figures(self.events)

    def _program(self) -> list[str]:
        if self.name == "pg_unnest":
            return ["env", f"NODE_FOLDER={competitor_installs.node()}", "node", str(SCRIPTS / "pg_unnest.js")]
        if self.name in ("naive_sync", "cryptofeed_writer"):
            return [str(competitor_installs.python()), str(SCRIPTS / f"{self.name}.py")]
        if self.name == "naive_async":
            return [sys.executable, str(SCRIPTS / f"{self.name}.py")]
        return [sys.executable, "-m", f"tests.tools.benchmarks.scripts.{self.name}"]


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    # Our settings do not apply to other programs, and warnings in their code are not errors.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "PYTHONWARN"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_for_line(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], TIMEOUT_SECONDS)[0]:
        raise TimeoutError(f"the script did not print {word!r}")
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"the script printed {line!r} instead of {word!r}, or has ended")
