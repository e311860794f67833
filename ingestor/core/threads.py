"""Run work on another thread: a blocking call, one call at a time, or a queue that another thread empties.

All threads here are daemon threads, because neither a hanging connect nor a hanging statement can be cancelled and the
process must be able to end without them.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


async def run_in_daemon_thread(call: Callable[[], T], name: str) -> T:
    """Run a blocking call in a thread of its own and return its result. Raises what the call raises, and OSError."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            deliver = partial(result.set_result, call())
        except Exception as error:
            deliver = partial(result.set_exception, error)
        try:
            loop.call_soon_threadsafe(lambda: result.done() or deliver())
        except RuntimeError:
            pass  # the loop has ended, the result is not needed

    start_thread(threading.Thread(target=run, name=name, daemon=True))
    return await result


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. Raises OSError, like any other lack of a resource, if the system allows no further one."""
    try:
        thread.start()
    except RuntimeError:
        raise BlockingIOError(errno.EAGAIN, "cannot start a thread") from None


class DaemonExecutor:
    """One daemon thread that runs one call at a time. It starts with the first call."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call. Must not be called after ``close``."""
        future: Future[T] = Future()
        self._calls.put(lambda: _run_into(future, call))
        if not self._thread.is_alive():
            start_thread(self._thread)
        return future

    def close(self) -> None:
        """Let the thread end after the queued calls. Returns at once."""
        self._calls.put(None)

    def _run(self) -> None:
        while call := self._calls.get():
            call()
            del call  # a batch is large: release it before waiting for the next call


def _run_into(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


class _WorkItem(NamedTuple):
    work: Callable[[int], Any]
    after_seq: int
    future: Future[Any]


class WorkQueue:
    """Work that any thread submits and one thread runs, in order: the writer is the only one that may write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_WorkItem] = []
        self._closed = False

    def submit(self, work: Callable[[int], T], after_seq: int) -> Future[T]:
        """Call ``work`` with the instance id once every entry up to ``after_seq`` is committed.

        After ``close`` the returned future is cancelled.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.cancel()
            else:
                self._waiting.append(_WorkItem(work, after_seq, future))
        return future

    def run(self, instance_id: int, position: int) -> None:
        """Run the work that is due at this position. Its errors go to its future."""
        with self._lock:
            due = [item for item in self._waiting if item.after_seq <= position]
            self._waiting = [item for item in self._waiting if item.after_seq > position]
        for item in due:
            if not item.future.set_running_or_notify_cancel():
                continue
            try:
                item.future.set_result(item.work(instance_id))
            except Exception as error:
                item.future.set_exception(error)

    def close(self) -> None:
        """Cancel what waits and whatever is submitted later."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
        for item in waiting:
            item.future.cancel()
