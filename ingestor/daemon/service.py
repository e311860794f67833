"""Builds everything once, owns every task and signal, and drains in order.

Start: locks, spool recovered, READY; database and provider may be away for hours. Stop: connections closed, spool
synced, what is in it written for up to ten seconds; a second signal stops at once, which is safe as well.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import SecretStr

from ingestor.config import Config, require_api_key
from ingestor.core.clock import boottime, detect_interruption, read_clocks, wall_us
from ingestor.core.entries import Fact
from ingestor.daemon import status_snapshot
from ingestor.daemon.control import ControlError, ControlFunction, ControlServer
from ingestor.daemon.factory import (
    build_repair_worker,
    build_spool,
    build_writer,
    instance_name,
    lock_database,
    startup_facts,
)
from ingestor.daemon.reload import ConfigReloader, read_config
from ingestor.daemon.scheduler import JobScheduler
from ingestor.errors import ConfigError, SpoolFailed
from ingestor.monitoring import log_setup
from ingestor.monitoring.coverage_strips import CoverageCache, StateSpan
from ingestor.monitoring.history import LoadHistory
from ingestor.monitoring.http_server import StatusServer
from ingestor.monitoring.latest_values import LatestValues
from ingestor.monitoring.metrics import Metrics
from ingestor.monitoring.sd_notify import SystemdNotifier, feed_watchdog, watchdog_seconds
from ingestor.monitoring.status import RecentErrors, Status, check_health
from ingestor.pipeline.dead_letters import requeue_dead_letters
from ingestor.provider.auth import TokenSource
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff, Supervisor
from ingestor.repair import backfill_requests
from ingestor.spool.chunk_store import SpoolUnreadable
from ingestor.spool.fill_level import FillLevel
from ingestor.store.engine import make_engine
from ingestor.store.open_database import open_database
from ingestor.store.read import status as query

HEARTBEAT_SECONDS = 5.0
DRAIN_SECONDS = 9.0
LAST_WORD_SECONDS = 1.0  # for the transaction under way; what hangs longer is left to the database to roll back
SPOOL_LOOK_SECONDS = 0.25
CLOCK_LOOK_SECONDS = 1.0
HISTORY_LOOK_SECONDS = 1.0
RETENTION_SECONDS = 600.0  # between sweeps
FIRST_RETENTION_SECONDS = 60.0  # after the start, and after a step of the clock: what waits there is more urgent
HEALING_SECONDS = 60.0  # between looks for gaps
FIRST_HEALING_SECONDS = 10.0  # likewise; the answers that follow a subscription have come by then

log = logging.getLogger(__name__)


class Service:
    """One daemon. Made outside the loop: what it cannot have (locks, spool) it says before it starts."""

    def __init__(self, config: Config, api_key: SecretStr) -> None:
        """Take the locks and recover the spool. Raises AlreadyLocked, SpoolFailed, OSError."""
        self._config = config
        self._api_key = api_key
        self._started_at = datetime.now(UTC)
        self._systemd = SystemdNotifier()
        self._database_lock = lock_database(config.database.url.get_secret_value())
        self._spool = build_spool(config)
        self._engine = make_engine(config.database.url.get_secret_value())
        self._troubles = RecentErrors()
        self._values, self._history = LatestValues(), LoadHistory()
        self._metrics = Metrics(self.status)
        self._listeners: list[Callable[[Fact], None]] = [
            log_setup.log_fact,
            self._metrics.on_fact,
            self._troubles.on_fact,
        ]
        self._heard = ActivityTracker()
        self._writer = build_writer(
            config,
            self._spool,
            self._engine,
            on_decoded=self._heard.record,
            on_batch=self._metrics.observe_batch,
            on_rows=self._values.add_rows,
            on_outage=_warn_of_outage,
            on_lost=self._tell_of_loss,
        )
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloads = 0  # under way, and waiting for their turn
        self.url: str | None = None  # of the status port, once it is open

    # -- its life

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises what ended it otherwise: SpoolFailed, SchemaTooNew, …"""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(log_setup.loop_error_handler(self._metrics.count_uncaught_error))
        self._stopping, self._hurry, self._written = asyncio.Event(), asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the command held it back so far
        async with AsyncExitStack() as stack:
            self._build(stack)
            web = StatusServer(
                self._config.http.listen,
                snapshot=self.status,
                metrics=self._metrics,
                values=self._values,
                history=lambda: self._history.to_json(boottime()),
                coverage=CoverageCache(self._covered).to_json,
            )
            await stack.enter_async_context(web)
            self.url = web.url
            await stack.enter_async_context(ControlServer(self._config.spool.path, self._handlers()))
            self._thread.start()
            self._healing.start()
            self._systemd.ready("receiving")
            self._start_tasks()
            await self._stopping.wait()
            self._systemd.stopping()
            await self._shut_down()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """What SIGTERM does; the second time without waiting for the database."""
        self._on_signal()

    def _build(self, stack: AsyncExitStack) -> None:
        self._spool.start(self._fail)
        for fact in startup_facts(self._spool, self._config):
            self._record(fact)
        self._scheduler = JobScheduler()
        self._scheduler.start()
        stack.callback(self._scheduler.shutdown)
        provider = self._config.provider
        self._tokens = TokenSource(
            provider.url + provider.token_path,
            self._api_key,
            provider.token,
            self._scheduler,
            ca_file=provider.ca_file,
            proxy=self._config.proxy,
            key_file=self._config.key_file,
        )
        self._tokens.api_key.on_changed.append(self._tell_of_key)
        stack.push_async_callback(self._tokens.close)
        self._supervisor = Supervisor(
            provider,
            self._config.subscriptions,
            self._tokens,
            self._spool,
            self._record,
            self._heard,
            self._config.proxy,
        )
        self._healing = build_repair_worker(
            self._config, lambda: self._tokens.api_key.value, self._spool, self._writer, self._engine, self._record
        )
        self._schedule_jobs()
        self._reload = ConfigReloader(
            self._config, partial(read_config, self._config.source), self._apply, self._record
        )
        self._parts = status_snapshot.StatusSources(
            reload=self._reload,
            instance=instance_name(self._config),
            started_at=self._started_at,
            database_kind=self._engine.dialect.name,
            spool=self._spool,
            writer=self._writer.status,
            receive=self._supervisor.status,
            tokens=self._tokens.status,
            troubles=self._troubles,
        )

    def _start_tasks(self) -> None:
        self._start(self._supervisor.run(), "supervisor")
        self._ticked = read_clocks()
        self._start(self._beat(), "heartbeat")
        self._start(self._watch_clocks(), "clocks")
        self._start(self._watch_spool(), "spool level")
        if self._config.watch:
            self._start(self._reload.watch(self._on_hangup), "config file")
        self._start(self._keep_history(), "history")
        seconds = watchdog_seconds()
        if seconds:
            self._start(feed_watchdog(self._systemd, seconds, lambda: check_health(self.status()).ok), "watchdog")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        task.add_done_callback(self._task_done)
        self._tasks.add(task)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._fail(task.exception())

    def _fail(self, failure: BaseException | None) -> None:
        """End the daemon: the first failure is its exit code. systemd starts it anew."""
        if self._failure is None:
            self._failure = failure
            log.critical("stopping: %s", failure, exc_info=failure)
        self._stopping.set()

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
            self._writer.stop()
        self._stopping.set()

    # -- the end

    async def _shut_down(self) -> None:
        """Close the connections, sync the spool, let the writer drain."""
        self._look_at_clocks()
        await self._supervisor.stop()
        await self._healing.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._spool.failure is None:
            self._record(Fact("stopped", wall_us(), {"reason": "stopped by us"}))
            self._spool.heartbeat(wall_us())
            try:
                await self._spool.flush()
            except SpoolFailed as failure:
                self._fail(failure)
        await self._drain()
        await self._spool.close()
        self._engine.dispose()
        if self._database_lock:
            self._database_lock.release()

    async def _drain(self) -> None:
        if self._spool.failure is None:
            self._writer.drain()
            await self._first_of(DRAIN_SECONDS, self._written.wait(), self._hurry.wait())
        self._writer.stop()
        await self._first_of(LAST_WORD_SECONDS, self._written.wait())
        left = self._spool.synced - self._writer.status.position
        if left > 0:
            log.warning("entries stay in the spool; they are written at the next start", extra={"entries": left})

    async def _first_of(self, seconds: float, *waits: Coroutine[Any, Any, Any]) -> None:
        tasks = [self._loop.create_task(wait) for wait in waits]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    # -- what it is asked to do

    def _handlers(self) -> dict[str, ControlFunction]:
        return {
            "status": self._tell_status,
            "retry": self._retry_letters,
            "reload": self._tell_reload,
            "backfill": self._backfill,
        }

    async def _tell_status(self, _asked: dict[str, Any]) -> dict[str, Any]:
        return {"status": self.status().to_json().decode()}

    async def _retry_letters(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"retried": await requeue_dead_letters(self._spool, self._engine, asked.get("ids") or [])}

    async def _tell_reload(self, _asked: dict[str, Any]) -> dict[str, Any]:
        return await self._reload_now()

    def _on_hangup(self) -> None:
        self._start(self._reload_in_peace(), "reload")

    async def _reload_in_peace(self) -> None:
        try:
            await self._reload_now()
        except (ConfigError, ControlError):
            pass  # whoever edits the file reads of it in log and status; nobody waits for an answer here

    async def _reload_now(self) -> dict[str, Any]:
        self._systemd.reloading()
        self._reloads += 1
        try:
            return await self._reload.reload()
        finally:
            self._reloads -= 1
            # Whoever waits for the last of them must not hear of another's end, nor of a READY after STOPPING.
            if not self._reloads and not self._stopping.is_set():
                self._systemd.ready("receiving")  # with whichever config

    def _apply(self, config: Config) -> SubscriptionDiff:
        if self._stopping.is_set():
            raise ControlError("the daemon is stopping; the next start reads the file")
        self._tokens.api_key.replace(require_api_key(config), config.key_file)
        return self._supervisor.apply(config.subscriptions)

    async def _backfill(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"repairs": await self._healing.request(backfill_requests.from_json(asked["requests"]))}

    # -- what it does all the time

    def _record(self, fact: Fact) -> int:
        """State a fact once: it goes through the spool, and whoever listens is told."""
        seq = self._spool.append(fact)
        for listen in self._listeners:
            listen(fact)
        return seq

    def _write(self) -> None:
        try:
            self._writer.run()
        except Exception as error:
            self._in_loop(self._fail, error)
            if isinstance(error, SpoolUnreadable):
                self._spool.mark_corrupt()
        finally:
            self._in_loop(self._written.set)

    def _in_loop(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            pass  # a statement hung for longer than the daemon lived: nobody listens any more

    def _tell_of_loss(self, reason: str) -> None:
        """In the writer's thread: the database and the spool do not fit together any more."""
        detail = {"reason": reason, "first_seq": self._spool.first_seq()}
        self._loop.call_soon_threadsafe(self._record, Fact("lost", wall_us(), detail))
        self._loop.call_soon_threadsafe(self._supervisor.rerecord_states)

    def _tell_of_key(self) -> None:
        self._record(Fact("key_changed", wall_us(), {"reason": "there is another API key"}))

    async def _beat(self) -> None:
        while True:
            self._look_at_clocks()  # first: a heartbeat must not vouch for a time in which nothing ran
            self._spool.heartbeat(wall_us())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _watch_clocks(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_LOOK_SECONDS)
            self._look_at_clocks()

    def _look_at_clocks(self) -> None:
        """Where time went by unseen, say so in coverage, and arm every job anew: APScheduler follows the wall clock."""
        before, self._ticked = self._ticked, read_clocks()
        found = detect_interruption(before, self._ticked)
        if found is None:
            return
        kind = "clock_stepped" if found.step_seconds else "stood_still"
        detail = {"reason": found.reason, "seconds": round(found.step_seconds or found.stall_seconds, 3)}
        self._supervisor.record_interruption(kind, detail, before.wall_us)
        self._scheduler.rearm_all()

    def _schedule_jobs(self) -> None:
        every = self._scheduler.every
        every("retention", self._writer.request_retention, RETENTION_SECONDS, first_seconds=FIRST_RETENTION_SECONDS)
        every("repair", self._healing.wake, HEALING_SECONDS, first_seconds=FIRST_HEALING_SECONDS)

    async def _watch_spool(self) -> None:
        """Warn while it fills; when it is full close the connections on purpose, rather than drop what comes."""
        level = FillLevel.FINE
        while True:
            before, level = level, self._spool.update_fill_level()
            if level is not before:
                await self._on_fill(before, level)
            await asyncio.sleep(SPOOL_LOOK_SECONDS)

    async def _keep_history(self) -> None:
        while True:
            lag_seconds = status_snapshot.lag_seconds(self._writer.status, datetime.now(UTC))
            self._history.record(
                boottime(), head_seq=self._spool.head, waiting=self._spool.entries, lag_seconds=lag_seconds
            )
            await asyncio.sleep(HISTORY_LOOK_SECONDS)

    async def _on_fill(self, before: FillLevel, level: FillLevel) -> None:
        used_percent = round(100 * self._spool.live_bytes / self._spool.max_bytes, 1)
        what = "the spool fills" if level > before else "the spool drains"
        if self._spool.disk_full:
            what = "the disk under the spool is full"
        detail = {"reason": what, "level": level.name.lower(), "used_percent": used_percent}
        self._record(Fact("spool_full" if level is FillLevel.FULL else "spool_level", wall_us(), detail))
        if level is FillLevel.FULL:
            await self._supervisor.disconnect_all(what)
        elif before is FillLevel.FULL:
            self._supervisor.resume()

    def status(self) -> Status:
        """The daemon now. Called in the loop, once ``run`` has begun."""
        return status_snapshot.build_status(self._parts)

    def _covered(self, since: datetime) -> Iterator[StateSpan]:
        """In a thread of its own: coverage of this instance, as the database has it."""
        with open_database(self._config.database.url.get_secret_value()) as engine:
            for record in query.load_state_spans(engine, self._spool.spool_id, since):
                yield StateSpan(**record)


def _warn_of_outage(error: str, delay_seconds: float) -> None:
    again = {"reason": error, "retry_in_seconds": round(delay_seconds, 1)}
    log.warning("the database cannot be reached", extra=again)
