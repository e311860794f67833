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


class Load:
    """``with Load() as load``: a server on loopback that pushes when told. TimeoutError: it says nothing."""

    def __enter__(self) -> Self:
        script = Path(__file__).with_name("load.js")
        command = ["node", "--max-http-header-size=65536", str(script), str(install("4"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._hear('listening')['port']}"
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def subscribed(self, count: int = 1) -> None:
        """Wait for so many further subscriptions."""
        for _ in range(count):
            self._hear("subscribed")

    def prepare(self, events: int, rows: int, *, rolling: bool = False) -> None:
        """Make events for what is subscribed: of ``rows`` new rows each, or of a window of which one is new."""
        self._say(do="prepare", events=events, rows=rows, rolling=rolling)
        self._hear("prepared")

    def push(self) -> None:
        """Begin to push what was prepared; ``pushed`` waits for the end."""
        self._say(do="push")

    def pace(self, rate: int, seconds: float) -> None:
        """Begin to emit one-row events, so many a second; each value is its time in ms since the epoch."""
        self._say(do="pace", rate=rate, seconds=seconds)

    def pushed(self, timeout_seconds: float = TIMEOUT_SECONDS) -> float:
        """How many seconds the push took."""
        return float(self._hear("pushed", timeout_seconds)["seconds"])

    def _say(self, **what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._told.put(json.loads(line))

    def _hear(self, event: str, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        while True:
            try:
                told = self._told.get(timeout=timeout_seconds)
            except queue.Empty:
                raise TimeoutError(f"the load generator did not say {event!r}") from None
            if told["event"] == event:
                return told
