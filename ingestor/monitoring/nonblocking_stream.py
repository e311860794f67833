"""Finished log lines on their way out, written by a thread: a pipe that nobody reads holds up whoever writes to it.

What waits is bounded. Lines that find no room are dropped, and their number is told where they are missing.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

WAITING_CHARACTERS = 1 << 20  # besides what the pipe itself holds
FLUSH_SECONDS = 2.0  # for a reader who may come back; a stop of the daemon must not depend on one


class NonBlockingWriter:
    """Takes lines without ever waiting, from any thread. ``notice`` makes the line that tells how many are missing."""

    def __init__(self, stream: TextIO, notice: Callable[[int], str]) -> None:
        self._stream = stream
        self._descriptor = _own_descriptor(stream)
        self._notice = notice
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._size = 0  # characters, with the line that is being written
        self._dropped = 0  # since the last line that found room
        self._closed = False
        threading.Thread(target=self._run, name="log lines", daemon=True).start()

    def write(self, line: str) -> None:
        """Write ``line`` (with its end) when its turn comes."""
        with self._changed:
            if self._closed:
                return
            if self._size > 0 and self._size + len(line) > WAITING_CHARACTERS:
                self._dropped += 1
                return
            self._tell_dropped()
            self._append(line)

    def flush(self) -> None:
        """Wait until everything is written, two seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._size and not self._dropped, FLUSH_SECONDS)

    def close(self) -> None:
        """Write what waits, and end. Does not wait for that."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _append(self, line: str) -> None:
        self._waiting.append(line)
        self._size += len(line)
        self._changed.notify_all()

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._append(self._notice(dropped))

    def _run(self) -> None:
        while (line := self._next()) is not None:
            try:
                self._write(line)
            except (OSError, ValueError):
                pass  # the stream itself is gone, and there is nowhere left to say so
            with self._changed:
                self._size -= len(line)
                if not self._waiting:
                    self._tell_dropped()
                self._changed.notify_all()
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None

    def _write(self, line: str) -> None:
        if self._descriptor is None:
            self._stream.write(line)
            self._stream.flush()
            return
        # Past the stream's own buffer: the interpreter flushes it at its end, and would wait for ever for its lock.
        data = line.encode(self._stream.encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # made so by whoever shares the terminal with us
                select.select((), (self._descriptor,), ())


def _own_descriptor(stream: TextIO) -> int | None:
    try:
        return os.dup(stream.fileno())  # the number itself may mean another file once the stream is closed
    except (OSError, ValueError):  # no file behind it
        return None
