from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref

import pytest

from ingestor.core.threads import DaemonExecutor

HANGS = """
import threading
from ingestor.core.threads import DaemonExecutor
DaemonExecutor("hangs").submit(threading.Event().wait)
"""


def test_daemon_executor_runs_calls_in_order_and_returns_errors() -> None:
    executor = DaemonExecutor("work")
    done: list[str] = []
    first, second = (
        executor.submit(lambda: done.append(threading.current_thread().name) or len(done)) for _ in range(2)
    )
    assert (first.result(10), second.result(10), done) == (1, 2, ["work", "work"])
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 // 0).result(10)
    executor.close()


def test_daemon_executor_releases_finished_call() -> None:
    executor, held = DaemonExecutor("work"), {1}
    kept = weakref.ref(held)
    executor.submit(held.copy).result(10)
    del held
    deadline = time.monotonic() + 10
    while kept() and time.monotonic() < deadline:
        pass
    assert kept() is None
    executor.close()


def test_process_ends_while_daemon_executor_hangs() -> None:
    assert subprocess.run([sys.executable, "-c", HANGS], timeout=30, check=False).returncode == 0
