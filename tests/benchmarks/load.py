"""The load generator: a Node server, since python-socketio cannot push that fast."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.peer import install


class Load:
    """``with Load() as load``: a server on loopback that pushes when told."""

    def __enter__(self) -> Self:
        script = Path(__file__).with_name("load.js")
        command = ["node", "--max-http-header-size=65536", str(script), str(install("4"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self._hear('listening')['port']}"
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def subscribed(self) -> None:
        """Wait for the next subscription."""
        self._hear("subscribed")

    def push(self, events: int, rows: int) -> None:
        """Begin to push; ``pushed`` waits for the end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"events": events, "rows": rows}) + "\n")
        self._process.stdin.flush()

    def pushed(self) -> float:
        """How many seconds the push took."""
        return float(self._hear("pushed")["seconds"])

    def _hear(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event:
                return told
        raise RuntimeError("the load generator has ended")
