"""The daemon's heartbeat: after a crash, coverage ends at the last one."""

from __future__ import annotations

import asyncio

from ingestor.core.clock import wall_us
from ingestor.daemon.watchers import ClockWatcher
from ingestor.spool.spool import Spool

HEARTBEAT_SECONDS = 5.0


async def send_heartbeats(spool: Spool, clocks: ClockWatcher) -> None:
    """Write heartbeats to the spool until cancelled."""
    while True:
        clocks.check()  # first, because a heartbeat must not vouch for a time in which nothing ran
        spool.heartbeat(wall_us())
        await asyncio.sleep(HEARTBEAT_SECONDS)
