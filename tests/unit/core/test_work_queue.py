from __future__ import annotations

from concurrent.futures import CancelledError

import pytest

from ingestor.core.threads import WorkQueue
from ingestor.errors import DatabaseUnavailable


def test_work_queue_runs_work_once_its_position_is_reached() -> None:
    queue = WorkQueue()
    first, second = (
        queue.submit(lambda instance_id: f"first of {instance_id}", 10),
        queue.submit(lambda instance_id: f"second of {instance_id}", 5),
    )
    queue.run(7, position=9)
    assert (first.done(), second.result(0)) == (False, "second of 7")
    queue.run(8, position=10)
    assert first.result(0) == "first of 8"


def test_work_queue_returns_error_and_runs_the_rest() -> None:
    queue = WorkQueue()

    def fail(_: int) -> None:
        raise DatabaseUnavailable("away")

    wrong, right = queue.submit(fail, 0), queue.submit(lambda _: 1, 0)
    queue.run(1, 0)
    with pytest.raises(DatabaseUnavailable):
        wrong.result(0)
    assert right.result(0) == 1


def test_closed_work_queue_cancels_waiting_and_late_work() -> None:
    queue = WorkQueue()
    done: list[int] = []
    before, withdrawn = queue.submit(done.append, 0), queue.submit(done.append, 0)
    withdrawn.cancel()
    queue.run(1, 0)
    assert (before.result(0), done) == (None, [1])
    waiting = queue.submit(done.append, 99)
    queue.close()
    for late in (waiting, queue.submit(done.append, 0)):
        with pytest.raises(CancelledError):
            late.result(0)
