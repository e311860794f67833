"""Write log lines from a thread: writing to a pipe that is full blocks until its reader reads.

The queue is bounded. Lines that find no room are dropped, and a notice says how many are missing where they would be.

``logging.handlers.QueueListener`` does not serve here. Its ``stop`` waits for a blocked write without limit, and raises
if the queue is full; its queue is bounded by records, of which one may be a megabyte; and its ``StreamHandler`` writes
through ``sys.stderr``, whose lock the interpreter takes at its end, so that a blocked write keeps the process alive.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

MAX_QUEUED_CHARACTERS = 1 << 20  # besides what the pipe itself holds
FLUSH_SECONDS = 2.0  # the reader may come back, but the daemon must stop without it


class NonBlockingWriter:
    """Queues lines from any thread without blocking. ``notice`` makes the line that says how many are missing."""

    def __init__(self, stream: TextIO, notice: Callable[[int], str]) -> None:
        self._stream = stream
        self._descriptor = _duplicate_descriptor(stream)
        self._notice = notice
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._characters = 0  # queued, and in the line that is being written
        self._dropped = 0  # lines, since one last found room
        self._closed = False
        threading.Thread(target=self._run, name="log lines", daemon=True).start()

    def write(self, line: str) -> None:
        """Queue ``line``, which includes its newline, or drop it if there is no room."""
        with self._changed:
            if self._closed:
                return
            if self._characters > 0 and self._characters + len(line) > MAX_QUEUED_CHARACTERS:
                self._dropped += 1
                return
            self._append_notice()
            self._append(line)

    def flush(self) -> None:
        """Wait until everything is written, two seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._characters and not self._dropped, FLUSH_SECONDS)

    def close(self) -> None:
        """Refuse further lines, and let the thread end after the queued ones. Returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._characters += len(line)
        self._changed.notify_all()

    def _append_notice(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._append(self._notice(dropped))

    def _run(self) -> None:
        while (line := self._next_line()) is not None:
            try:
                self._write_blocking(line)
            except (OSError, ValueError):
                pass  # the stream is closed or broken, and there is no other place to report it
            with self._changed:
                self._characters -= len(line)
                if not self._lines:
                    self._append_notice()
                self._changed.notify_all()
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _next_line(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            return self._lines.popleft() if self._lines else None

    def _write_blocking(self, line: str) -> None:
        if self._descriptor is None:
            self._stream.write(line)
            self._stream.flush()
            return
        # Bypass the stream's buffer: at its end, the interpreter flushes it and would wait forever for its lock.
        data = line.encode(self._stream.encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process that shares the terminal made it non-blocking
                select.select((), (self._descriptor,), ())


def _duplicate_descriptor(stream: TextIO) -> int | None:
    try:
        return os.dup(stream.fileno())  # once the stream is closed, its own number may come to mean another file
    except (OSError, ValueError):  # no file behind it
        return None
