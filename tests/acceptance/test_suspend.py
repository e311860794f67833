"""A daemon that does not run for a while, as after SIGSTOP or on a suspended machine, and continues."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.faulty_simulator import FaultySimulator

from ..support import expected_rows
from ..support.daemon import CommandProcess, DaemonProcess, until, write_config

STOPPED_SECONDS = 7.0
CHECK = timedelta(seconds=4)  # between two checks of the clocks: a second, and on a busy machine more


async def test_suspend_is_a_gap_in_coverage_without_lost_rows(simulator: FaultySimulator, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path / 'ingestor.db'}"  # does not depend on the kind of database
    wanted = {"/real-time/crowd-sentiment": ["AAPL", "ON"]}
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=wanted)
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: daemon.status["rows"]["new"] > 300)
        stopped_at = datetime.now(UTC)
        os.kill(daemon.pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_SECONDS)
        continued_at = datetime.now(UTC)
        os.kill(daemon.pid, signal.SIGCONT)
        await until(lambda: daemon.db.states("ON") == ["pending", "live", "silent", "live"])
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
        assert len(simulator.connections) == 1
        assert await daemon.terminate() == 0

    daemon.db.assert_consistent()
    _, live, silent, again, _ = daemon.db.coverage("ON")
    # From the last check of the clocks to the next one.
    assert stopped_at - CHECK < live["ended_at"] == silent["started_at"] <= stopped_at
    assert continued_at <= silent["ended_at"] == again["started_at"] < continued_at + CHECK
    assert silent["reason"].startswith("the process stood still for ")
    (gap,) = [gap for gap in daemon.db.gaps("ON") if gap["states"] == "silent"]
    assert (gap["from_at"], gap["to_at"]) == (live["ended_at"], again["started_at"])
    async with CommandProcess("audit", "--config", config, folder=tmp_path) as audit:
        assert await audit.wait_for_exit() == 0
