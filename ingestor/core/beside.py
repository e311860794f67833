"""Work beside the thread that asks for it, one piece at a time, for which the end of the process does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Beside:
    """One more thread, from the first piece of work on. An executor's would be waited for, and a statement may hang."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """Have it done. Not to be asked for once closed."""
        outcome: Future[T] = Future()
        self._work.put(lambda: _do(work, outcome))
        if not self._thread.is_alive():
            self._thread.start()
        return outcome

    def close(self) -> None:
        """Let the thread end when it is done with what it was asked for; returns at once."""
        self._work.put(None)

    def _run(self) -> None:
        while work := self._work.get():
            work()
            del work  # while it waits for more: a batch is large


def _do(work: Callable[[], T], outcome: Future[T]) -> None:
    try:
        outcome.set_result(work())
    except BaseException as error:
        outcome.set_exception(error)
