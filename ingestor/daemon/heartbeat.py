"""Heartbeats, and the check of the clocks that comes before each of them."""

from __future__ import annotations

import asyncio

from ingestor.core.clock import detect_interruption, read_clocks, wall_us
from ingestor.daemon.scheduler import JobScheduler
from ingestor.provider.subscriptions.supervisor import Supervisor
from ingestor.spool.spool import Spool

CLOCK_CHECK_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0


class ClockWatcher:
    """Detects clock steps, and times in which the process did not run; both by comparing two clocks."""

    def __init__(self, supervisor: Supervisor, scheduler: JobScheduler) -> None:
        self._supervisor = supervisor
        self._scheduler = scheduler
        self._last_reading = read_clocks()

    async def run(self) -> None:
        """Check the clocks until cancelled."""
        while True:
            await asyncio.sleep(CLOCK_CHECK_SECONDS)
            self.check()

    def check(self) -> None:
        """If time passed unobserved since the last check, record that in coverage and set every job again."""
        before, self._last_reading = self._last_reading, read_clocks()
        found = detect_interruption(before, self._last_reading)
        if found is None:
            return
        kind = "clock_stepped" if found.step_seconds else "stood_still"
        detail = {"reason": found.reason, "seconds": round(found.step_seconds or found.stall_seconds, 3)}
        self._supervisor.record_interruption(kind, detail, before.wall_us)
        self._scheduler.reschedule_all()


async def send_heartbeats(spool: Spool, clocks: ClockWatcher) -> None:
    """Write heartbeats to the spool until cancelled: after a crash, coverage ends at the last one."""
    while True:
        clocks.check()  # first, because a heartbeat must not cover a time in which nothing ran
        spool.heartbeat(wall_us())
        await asyncio.sleep(HEARTBEAT_SECONDS)
