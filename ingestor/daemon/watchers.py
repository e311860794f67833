"""Tasks that watch the fill level of the spool and the load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact
from ingestor.daemon import status_snapshot
from ingestor.monitoring.load_history import LoadHistory
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.provider.subscriptions.supervisor import Supervisor
from ingestor.spool.fill_level import FillLevel
from ingestor.spool.spool import Spool

SPOOL_CHECK_SECONDS = 0.25
HISTORY_SECONDS = 1.0


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
    if level is FillLevel.FULL:
        reason = "the spool is full"
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
