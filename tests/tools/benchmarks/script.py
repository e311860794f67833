"""The scripts and programs of others, and parts of ours, as subjects: see scripts/__init__.py."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.tools.benchmarks import others
from tests.tools.benchmarks.stage import TIMEOUT_SECONDS, Stage

SCRIPTS = Path(__file__).with_name("scripts")
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Script:
    """Events per second, from the first one pushed to ``done``."""

    name: str
    events: int
    rows: int = 1
    counts: bool = False  # it writes nothing

    def __call__(self, stage: Stage) -> dict[str, float]:
        database = "-" if self.counts else stage.database_url
        with _running([*self._program(), stage.load.url, database, str(self.events), str(self.rows)]) as process:
            _hear(process, "ready")
            stage.load.subscribed()
            stage.load.prepare(self.events, self.rows)
            started = time.monotonic()
            stage.load.push()
            _hear(process, "done")
            return {"": self.events / (time.monotonic() - started)}

    def _program(self) -> list[str]:
        if self.name == "unnest":
            return ["env", f"NODE_FOLDER={others.node()}", "node", str(SCRIPTS / "unnest.js")]
        if self.name in ("naive_sync", "cryptofeed_writer"):
            return [str(others.python()), str(SCRIPTS / f"{self.name}.py")]
        if self.name == "naive_async":
            return [sys.executable, str(SCRIPTS / f"{self.name}.py")]
        return [sys.executable, "-m", f"tests.tools.benchmarks.scripts.{self.name}"]


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    # No settings of ours, and no warnings as errors: they are the others' own.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "PYTHONWARN"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _hear(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], TIMEOUT_SECONDS)[0]:
        raise TimeoutError(f"the script did not say {word!r}")
    said = process.stdout.readline().strip()
    if said != word:
        raise RuntimeError(f"the script said {said!r} instead of {word!r}, or has ended")
