"""Whether connections may be opened, and the state of the subscriptions meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingestor.core.permit import Permit
from ingestor.errors import ConnectionFailed
from ingestor.provider.subscriptions.states import Event

SPOOL_FULL = "the spool is full"
NOT_NOW = "connections must not be opened now"
CHECK_SECONDS = 1.0


class ConnectGate:
    """Closed while the spool is full, and while the permit is not held. Used in the event loop only.

    It must be asked right before each step that opens something: the permit may end at any moment.
    """

    def __init__(self, permit: Permit) -> None:
        self.standby_reason = ""  # while another instance is known to receive
        self._permit = permit
        self._has_space = asyncio.Event()
        self._has_space.set()

    @property
    def is_open(self) -> bool:
        return self._has_space.is_set() and self._permit.held

    @property
    def closed_by(self) -> tuple[Event, str] | None:
        """The event that closed it and the reason; None if it is open, or the permit has just not been granted."""
        if not self._has_space.is_set():
            return "spool_full", SPOOL_FULL
        return ("standby", self.standby_reason) if self.standby_reason else None

    @property
    def permitted(self) -> bool:
        """Whether the permit is held, whatever the spool's space."""
        return self._permit.held

    def check(self) -> None:
        """Raise ConnectionFailed unless it is open."""
        if not self.is_open:
            raise ConnectionFailed(NOT_NOW)

    @asynccontextmanager
    async def time_limit(self) -> AsyncIterator[None]:
        """End the block, by raising ConnectionFailed, once the permit is no longer held."""
        try:
            async with asyncio.timeout(None) as limit:
                watch = asyncio.create_task(self._expire(limit))
                try:
                    yield
                finally:
                    watch.cancel()
        except TimeoutError:
            raise ConnectionFailed(NOT_NOW) from None

    async def _expire(self, limit: asyncio.Timeout) -> None:
        # The permit may be renewed meanwhile, and timers stand still while the machine is suspended.
        while self._permit.held:  # noqa: ASYNC110
            await asyncio.sleep(min(CHECK_SECONDS, self._permit.seconds_left))
        limit.reschedule(asyncio.get_running_loop().time())

    def note_space(self, has_space: bool) -> None:
        """Note whether the spool has space."""
        (self._has_space.set if has_space else self._has_space.clear)()

    async def wait(self) -> None:
        """Wait until it is open."""
        while not self.is_open:
            await self._has_space.wait()
            await self._permit.wait()
