from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref

import pytest

from ingestor.core.beside import Beside

HANGS = """
import threading
from ingestor.core.beside import Beside
Beside("hangs").ask(threading.Event().wait)
"""


def test_work_is_done_in_its_order_by_one_other_thread_and_what_goes_wrong_is_told() -> None:
    beside = Beside("beside")
    done: list[str] = []
    first, second = (beside.ask(lambda: done.append(threading.current_thread().name) or len(done)) for _ in range(2))
    assert (first.result(10), second.result(10), done) == (1, 2, ["beside", "beside"])
    with pytest.raises(ZeroDivisionError):
        beside.ask(lambda: 1 // 0).result(10)
    beside.close()


def test_what_was_done_is_let_go() -> None:
    beside, held = Beside("beside"), {1}
    kept = weakref.ref(held)
    beside.ask(held.copy).result(10)
    del held
    deadline = time.monotonic() + 10
    while kept() and time.monotonic() < deadline:
        pass
    assert kept() is None
    beside.close()


def test_a_process_ends_though_the_work_hangs() -> None:
    assert subprocess.run([sys.executable, "-c", HANGS], timeout=30, check=False).returncode == 0
