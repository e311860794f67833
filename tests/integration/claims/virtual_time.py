"""Time that the test moves: clocks, an event loop that jumps to its next timer, and threads that run in turns."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

T0 = 1_767_225_600.0  # 2026-01-01 00:00 UTC
ROUND_SECONDS = 1e-7  # that each round of an event loop takes, so that no timer is due for ever
TURN_SECONDS = 30.0  # real ones, after which a thread that does not give its turn back hangs


class Clocks:
    """The one true time, and the wall clock that the daemons read."""

    def __init__(self) -> None:
        self.now = 1000.0  # seconds since boot
        self.offset = 0.0  # of the wall clock, in seconds

    @property
    def true_us(self) -> int:
        """The provider's wall clock, which is right."""
        return round((T0 + self.now) * 1_000_000)

    @property
    def wall_us(self) -> int:
        """The daemons' wall clock."""
        return round((T0 + self.now + self.offset) * 1_000_000)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Let the program read these clocks during the block."""
        real = time.clock_gettime

        def clock_gettime(clock: int) -> float:
            return self.now if clock == time.CLOCK_BOOTTIME else real(clock)

        with (
            mock.patch.object(time, "clock_gettime", clock_gettime),
            mock.patch.object(time, "time_ns", lambda: self.wall_us * 1000),
            mock.patch.object(time, "time", lambda: self.wall_us / 1_000_000),
        ):
            yield


class _JumpingSelector(selectors.SelectSelector):
    """Waits for no file: it moves the loop's time to the next timer instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        self.loop.jump((timeout or 0.0) + ROUND_SECONDS)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop without sockets and signals, whose time is the test's. What threads do, it does inline."""

    def __init__(self, clocks: Clocks) -> None:
        selector = _JumpingSelector()
        selector.loop = self
        self._clocks = clocks
        self._own_now: float | None = None
        super().__init__(selector)

    def time(self) -> float:
        return self._clocks.now if self._own_now is None else self._own_now

    def jump(self, seconds: float) -> None:
        if self._own_now is None:
            self._clocks.now += seconds
        else:
            self._own_now += seconds

    def run_until(self, now: float) -> None:
        """Run what is due, in the order of time, until the time is ``now``."""
        self.call_at(now, self.stop)
        self.run_forever()
        self._clocks.now = max(self._clocks.now, now)

    def discard(self) -> None:
        """Cancel every task and close the loop. The world's time stands still meanwhile."""
        self._own_now = self._clocks.now
        for _ in range(20):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self.call_later(10.0, self.stop)
            self.run_forever()
        self.close()

    def add_signal_handler(self, *_: Any) -> None:
        pass

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class Killed(BaseException):
    """The process was killed: raised in its threads where they wait."""


class TurnThread:
    """A thread that runs only between ``go`` and its own ``pause``."""

    def __init__(self, target: Callable[[], None], **_: Any) -> None:
        self._target = target
        self._mine, self._others = _thread.allocate_lock(), _thread.allocate_lock()
        self._mine.acquire()
        self._others.acquire()
        self._thread: threading.Thread | None = None
        self._killed = False
        self.ended = False
        self.died = False  # by what its target did, not by ``kill``

    def start(self) -> None:
        """Do nothing yet: it begins with its first turn."""

    def is_alive(self) -> bool:
        return self._thread is not None and not self.ended

    def join(self, _timeout: float | None = None) -> None:
        """Return at once."""

    def go(self) -> None:
        """Let it run until it pauses or ends."""
        if self.ended:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._mine.release()
        if not self._others.acquire(timeout=TURN_SECONDS):
            frame = sys._current_frames()[self._thread.ident or 0]
            raise TimeoutError("the thread does not pause:\n" + "".join(traceback.format_stack(frame)[-12:]))

    def pause(self, *_: Any) -> None:
        """Give the turn back. Called in the thread."""
        self._others.release()
        self._mine.acquire()
        if self._killed:
            raise Killed

    def kill(self) -> None:
        """End it where it pauses."""
        self._killed = True
        if self._thread is None:
            self.ended = True
        self.go()

    def _run(self) -> None:
        try:
            self._target()
        except Killed:
            self.died = not self._killed
        finally:
            self.ended = True
            self._others.release()


class InlineExecutor:
    """Runs a call at once, instead of in a thread of its own."""

    def __init__(self, _name: str) -> None:
        pass

    def submit(self, call: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass
