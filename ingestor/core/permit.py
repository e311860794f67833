"""The permission to use the API key. With stand-by it ends by itself, unless a lease in the database is renewed."""

from __future__ import annotations

import asyncio
import math

from ingestor.core.clock import boottime


class Permit:
    """Held until a boottime. It ends by itself, also while the machine is suspended or the process stopped.

    Any thread may read ``held``. Everything else is for the event loop.
    """

    def __init__(self, until: float = math.inf) -> None:
        self._until = until
        self._granted = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether the API key may be used at this moment. Ask right before each use."""
        return boottime() < self._until

    @property
    def seconds_left(self) -> float:
        """For how long it is held; 0 if it is not, infinite if it never ends."""
        return max(0.0, self._until - boottime())

    def grant(self, until: float) -> None:
        """Hold it until this boottime."""
        self._until = until
        self._granted.set()

    def revoke(self) -> None:
        """End it now."""
        self._until = -math.inf

    async def wait(self) -> None:
        """Wait until it is held."""
        while not self.held:
            self._granted.clear()
            await self._granted.wait()
