"""Tasks that send heartbeats, and watch the clocks, the fill level of the spool and the load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from ingestor.core.clock import boottime, detect_interruption, read_clocks, wall_us
from ingestor.core.entries import Fact
from ingestor.daemon import status_snapshot
from ingestor.daemon.scheduler import JobScheduler
from ingestor.monitoring.load_history import LoadHistory
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.provider.subscriptions.supervisor import Supervisor
from ingestor.spool.fill_level import FillLevel
from ingestor.spool.spool import Spool

CLOCK_CHECK_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
SPOOL_CHECK_SECONDS = 0.25
HISTORY_SECONDS = 1.0


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


async def watch_spool_level(spool: Spool, supervisor: Supervisor, record: Callable[[Fact], object]) -> None:
    """Warn while the spool fills. When it is full, close the connections, rather than drop what they receive."""
    level = FillLevel.FINE
    while True:
        before, level = level, spool.update_fill_level()
        if level is not before:
            await _on_level_change(spool, supervisor, record, before, level)
        await asyncio.sleep(SPOOL_CHECK_SECONDS)


async def _on_level_change(
    spool: Spool, supervisor: Supervisor, record: Callable[[Fact], object], before: FillLevel, level: FillLevel
) -> None:
    reason = "the spool is filling" if level > before else "the spool is draining"
    if spool.disk_full:
        reason = "the disk of the spool is full"
    used_percent = round(100 * spool.live_bytes / spool.max_bytes, 1)
    detail = {"reason": reason, "level": level.name.lower(), "used_percent": used_percent}
    record(Fact("spool_full" if level is FillLevel.FULL else "spool_level", wall_us(), detail))
    if level is FillLevel.FULL:
        await supervisor.disconnect_all(reason)
    elif before is FillLevel.FULL:
        supervisor.resume()


async def record_load(history: LoadHistory, spool: Spool, writer: WriterStatus) -> None:
    """Record the load for the charts of the status page until cancelled."""
    while True:
        lag_seconds = status_snapshot.commit_lag_seconds(writer, datetime.now(UTC))
        history.record(boottime(), head_seq=spool.head, waiting=spool.entries, lag_seconds=lag_seconds)
        await asyncio.sleep(HISTORY_SECONDS)
