"""The load generator: a Node server, since python-socketio cannot push that fast."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.node_server import install

TIMEOUT_SECONDS = 120.0
BAD_VALUE = 7  # all other values are between -1 and 1


class LoadGenerator:
    """``with LoadGenerator() as load``: a server on loopback that pushes on command.

    Methods that wait raise TimeoutError if the server does not report the event.
    """

    def __enter__(self) -> Self:
        script = Path(__file__).with_name("load_generator.js")
        command = ["node", "--max-http-header-size=65536", str(script), str(install("4"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read_messages, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._wait_for('listening')['port']}"
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_subscriptions(self, count: int = 1) -> None:
        """Wait for this many further subscriptions."""
        for _ in range(count):
            self._wait_for("subscribed")

    def prepare(
        self, events: int, rows: int = 1, *, rolling: bool = False, restated: bool = False, bad_every: int = 0
    ) -> None:
        """Create events for the subscriptions, of ``rows`` new rows each.

        ``rolling``: of a window with one new row. ``restated``: every other event is another value for a row of an
        earlier push, from the first row on. ``bad_every``: one event in so many has the value BAD_VALUE.
        """
        self._send(do="prepare", events=events, rows=rows, rolling=rolling, restated=restated, badEvery=bad_every)
        self._wait_for("prepared")

    def push(self) -> None:
        """Start to push the prepared events, to every connection. ``wait_for_push`` waits for the end."""
        self._send(do="push")

    def pace(self, rate: int, seconds: float) -> None:
        """Start to emit ``rate`` one-row events per second. A value is its emission time, in ms since the epoch."""
        self._send(do="pace", rate=rate, seconds=seconds)

    def wait_for_push(self, timeout_seconds: float = TIMEOUT_SECONDS) -> float:
        """Wait for the end of the push and return its duration in seconds."""
        return float(self._wait_for("pushed", timeout_seconds)["seconds"])

    def _send(self, **what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(json.loads(line))

    def _wait_for(self, event: str, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        while True:
            try:
                message = self._messages.get(timeout=timeout_seconds)
            except queue.Empty:
                raise TimeoutError(f"the load generator did not report {event!r}") from None
            if message["event"] == event:
                return message
