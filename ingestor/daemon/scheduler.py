"""Jobs that run at an interval or at a set time, kept through clock steps (APScheduler follows the wall clock)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from ingestor.core.clock import boottime

RETENTION_SECONDS = 600.0  # between two sweeps
FIRST_RETENTION_SECONDS = 60.0  # after a start or a clock step: the backlog comes first
REPAIR_SECONDS = 60.0  # between two searches for gaps
FIRST_REPAIR_SECONDS = 10.0  # likewise; by then, the responses that follow a subscription have arrived
EARLY_SECONDS = 1.0  # a job that runs earlier than this was not due: the wall clock was set forward


class JobScheduler:
    """Jobs by name. A job that is set again replaces the one of the same name. Used in the event loop only."""

    def __init__(self) -> None:
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._jobs: dict[str, Callable[[], None]] = {}

    def start(self) -> None:
        """Start running jobs. Must be called inside the running loop."""
        self._scheduler.start()

    def shutdown(self) -> None:
        """Stop running jobs. Returns at once."""
        self._scheduler.shutdown(wait=False)

    def every(self, name: str, job: Callable[[], object], seconds: float, *, first_seconds: float) -> None:
        """Run a function in a thread every ``seconds``; first, and again after a clock step, in ``first_seconds``."""
        self._set(name, partial(self._add, name, job, first_seconds, IntervalTrigger(seconds=seconds, timezone=UTC)))

    def at(self, name: str, job: Callable[[], Awaitable[object]], due_at: float) -> None:
        """Run a coroutine function once, at the boottime ``due_at``."""

        def schedule() -> None:
            self._add(name, run, max(0.0, due_at - boottime()), DateTrigger(timezone=UTC))

        async def run() -> None:
            if self._jobs.get(name) is not schedule:
                return  # replaced after APScheduler had started it
            if boottime() < due_at - EARLY_SECONDS:
                schedule()
                return
            del self._jobs[name]
            await job()

        self._set(name, schedule)

    def reschedule_all(self) -> None:
        """Set every job again. Must be called after a step of the wall clock or a suspend."""
        for schedule in self._jobs.values():
            schedule()

    def _set(self, name: str, schedule: Callable[[], None]) -> None:
        self._jobs[name] = schedule
        schedule()

    def _add(
        self, name: str, job: Callable[[], object], seconds: float, trigger: DateTrigger | IntervalTrigger
    ) -> None:
        self._scheduler.add_job(
            job,
            trigger,
            id=name,
            next_run_time=datetime.now(UTC) + timedelta(seconds=seconds),
            replace_existing=True,
            misfire_grace_time=None,  # by default, a job that is a second late is never run
        )
