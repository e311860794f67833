"""Who is measured: each takes events off the load generator until they are committed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks.load import Load
from tests.support.postgres import free_port

TIMEOUT_SECONDS = 300
POLL_SECONDS = 0.01


class Subject(Protocol):
    """Something that can be timed."""

    def __call__(self, load: Load, database_url: str, folder: Path, *, events: int, rows: int) -> float:
        """Seconds from the first event pushed to the last row committed."""


def ours(load: Load, database_url: str, folder: Path, *, events: int, rows: int) -> float:
    """The daemon as it is installed, with its defaults."""
    port = free_port()
    config = folder / "config.yaml"
    config.write_text(
        f"provider: {{url: '{load.url}'}}\n"
        f"database: {{url: '{database_url}'}}\n"
        f"http: {{listen: '127.0.0.1:{port}'}}\n"
        "log: {level: warning}\n"
        "subscriptions: [{path: /real-time/crowd-sentiment, tickers: [A]}]\n"
    )
    command = [str(Path(sys.executable).with_name("ingestor")), "run", "--config", str(config)]
    with subprocess.Popen(command, env=os.environ | {"INGESTOR_PROVIDER__API_KEY": "key"}) as daemon:
        try:
            load.subscribed()
            _until(lambda: _status(port)["database"]["up"])
            started = time.monotonic()
            load.push(events, rows)
            _until(lambda: _status(port)["rows"]["new"] >= events * rows)
            return time.monotonic() - started
        finally:
            daemon.send_signal(signal.SIGTERM)


def naive(load: Load, database_url: str, folder: Path, *, events: int, rows: int) -> float:
    """Forty lines with the library's client and a commit per event."""
    script = Path(__file__).with_name("naive.py")
    database_url = database_url.replace("postgresql://", "postgresql+psycopg://")
    command = [sys.executable, str(script), load.url, database_url, str(events)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        load.subscribed()
        started = time.monotonic()
        load.push(events, rows)
        assert process.stdout.readline() == "done\n"
        return time.monotonic() - started


def _until(true: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("the rows did not arrive")
        time.sleep(POLL_SECONDS)


def _status(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status.json", timeout=10) as answer:
            status: dict[str, Any] = json.load(answer)
            return status
    except urllib.error.URLError:
        return {"rows": {"new": 0}, "database": {"up": False}}  # not listening yet
