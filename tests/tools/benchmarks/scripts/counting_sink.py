"""A sink for connections, for programs that measure only the reading."""

import asyncio
from collections.abc import Callable

from ingestor.core.entries import Fact, Frame, FrameRun


class CountingSink:
    """A sink that only counts."""

    head = 0
    congested = False

    def append(self, entry: FrameRun | Frame | Fact) -> int:
        self.head += len(entry.texts) if isinstance(entry, FrameRun) else 1
        return self.head

    def begin_run(self, end: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(end)

    async def wait_for_space(self) -> None:
        """Return at once, because there is always space."""

    async def durable(self, seq: int) -> None:
        """Return at once, because nothing is stored."""
