"""Heartbeats, and the check of the clocks that comes before each of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ingestor.core.clock import Clocks
from ingestor.provider.subscriptions.supervisor import Supervisor
from ingestor.spool.spool import Spool

CLOCK_CHECK_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0


async def watch_clocks(clocks: Clocks) -> None:
    """Check the clocks until cancelled: whether one was set, or nothing ran for a while."""
    while True:
        await asyncio.sleep(CLOCK_CHECK_SECONDS)
        clocks.read()


async def send_heartbeats(spool: Spool, supervisor: Supervisor) -> None:
    """Write heartbeats to the spool until cancelled: after a crash, coverage ends at the last one.

    One follows at once when the clock is set: that of the old clock may lie in the future.
    """
    interrupted = asyncio.Event()
    supervisor.clocks.on_interruption.append(lambda *_: interrupted.set())
    while True:
        send_heartbeat(spool, supervisor)
        interrupted.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(interrupted.wait(), HEARTBEAT_SECONDS)


def send_heartbeat(spool: Spool, supervisor: Supervisor) -> None:
    """Write a heartbeat: now, and when each connection was last heard."""
    now = supervisor.clocks.read()  # a heartbeat must not cover a time in which nothing ran
    spool.heartbeat(now.wall_us, supervisor.heard_us(now))
