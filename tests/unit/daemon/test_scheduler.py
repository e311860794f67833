from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from ingestor.core.clock import boottime
from ingestor.daemon.scheduler import JobScheduler

HOUR = timedelta(hours=1)
STEPS = pytest.mark.parametrize("step", [pytest.param(-HOUR, id="back"), pytest.param(HOUR, id="forward")])


@pytest.fixture
async def scheduler() -> AsyncIterator[JobScheduler]:
    made = JobScheduler()
    made.start()
    yield made
    made.shutdown()
    await asyncio.sleep(0)  # it shuts down in the next iteration of the loop


def job_of(scheduler: JobScheduler, name: str) -> Any:
    return scheduler._scheduler.get_job(name)


def seconds_left(scheduler: JobScheduler, name: str) -> float:
    left: timedelta = job_of(scheduler, name).next_run_time - datetime.now(UTC)
    return left.total_seconds()


@STEPS
async def test_job_at_a_time_keeps_it_across_clock_step(scheduler: JobScheduler, step: timedelta) -> None:
    scheduler.at("once", asyncio.Event().wait, boottime() + 100)
    with time_machine.travel(datetime.now(UTC) + step, tick=True):
        scheduler.reschedule_all()
        assert seconds_left(scheduler, "once") == pytest.approx(100, abs=2)


@STEPS
async def test_interval_job_starts_again_after_clock_step(scheduler: JobScheduler, step: timedelta) -> None:
    scheduler.every("often", lambda: None, 60, first_seconds=10)
    with time_machine.travel(datetime.now(UTC) + step, tick=True):
        scheduler.reschedule_all()
        assert seconds_left(scheduler, "often") == pytest.approx(10, abs=2)


async def test_job_that_fires_early_is_rescheduled(scheduler: JobScheduler) -> None:
    done = asyncio.Event()

    async def finish() -> None:
        done.set()

    scheduler.at("once", finish, boottime() + 100)
    await job_of(scheduler, "once").func()
    assert not done.is_set()
    assert seconds_left(scheduler, "once") == pytest.approx(100, abs=2)


async def test_late_job_still_runs_and_never_twice_at_once(scheduler: JobScheduler) -> None:
    scheduler.every("often", lambda: None, 60, first_seconds=10)
    job = job_of(scheduler, "often")
    assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (None, True, 1)
