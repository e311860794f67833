"""Jobs that APScheduler runs at their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ingestor.core.clock import boottime
from ingestor.daemon.scheduler import JobScheduler
from tests.support.daemon import until


@pytest.fixture
async def scheduler() -> AsyncIterator[JobScheduler]:
    scheduler = JobScheduler()
    scheduler.start()
    yield scheduler
    scheduler.shutdown()
    await asyncio.sleep(0)  # it shuts down in the next iteration of the loop


async def test_job_runs_once_and_is_not_rescheduled(scheduler: JobScheduler) -> None:
    runs = []

    async def run() -> None:
        runs.append(boottime())

    scheduler.at("once", run, boottime() + 0.05)
    scheduler.at("once", run, boottime() + 0.1)  # replaces the first
    await until(lambda: runs)
    scheduler.reschedule_all()
    await asyncio.sleep(0.3)
    assert len(runs) == 1


async def test_interval_job_repeats(scheduler: JobScheduler) -> None:
    runs: list[float] = []
    scheduler.every("often", lambda: runs.append(boottime()), 0.05, first_seconds=0)
    await until(lambda: len(runs) > 2)
