"""Short pieces of work for the writer's thread, which is the only one that writes to the database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Errand(NamedTuple):
    work: Callable[[int], Any]
    after: int
    outcome: Future[Any]


class Errands:
    """Asked for by any thread, done by one, in their order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Errand] = []
        self._closed = False

    def ask(self, work: Callable[[int], T], after: int) -> Future[T]:
        """``work`` is called with the instance's id, once all up to entry ``after`` is committed."""
        outcome: Future[T] = Future()
        with self._lock:
            if self._closed:
                outcome.cancel()
            else:
                self._waiting.append(_Errand(work, after, outcome))
        return outcome

    def run(self, instance_id: int, position: int) -> None:
        """Do what is due. What goes wrong is told to who asked."""
        with self._lock:
            due = [one for one in self._waiting if one.after <= position]
            self._waiting = [one for one in self._waiting if one.after > position]
        for one in due:
            if not one.outcome.set_running_or_notify_cancel():
                continue
            try:
                one.outcome.set_result(one.work(instance_id))
            except Exception as error:
                one.outcome.set_exception(error)

    def close(self) -> None:
        """Nothing is done any more: what waits is cancelled, and what is still to be asked."""
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, []
        for one in left:
            one.outcome.cancel()
