"""The daemon as one object: builds every part once, owns every task, thread and signal, and shuts down in order.

At the start it takes the locks and recovers the spool, then reports READY: the database and the provider may be
unreachable for hours. At the end it closes the connections, syncs the spool, and writes what is in the spool to the
database for up to ten seconds. A second signal ends that wait, which is safe: the spool keeps the rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from ingestor.config import Config, require_api_key
from ingestor.core.clock import Clocks, boottime, wall_us
from ingestor.core.entries import Fact
from ingestor.core.permit import Permit
from ingestor.daemon import factory, heartbeat, scheduler, watchers
from ingestor.daemon.control_handlers import build_handlers
from ingestor.daemon.control_socket import ControlError, control_server
from ingestor.daemon.fact_limit import FactLimit
from ingestor.daemon.instance_cache import InstanceCache, load_shared_status
from ingestor.daemon.reload import ConfigReloader
from ingestor.daemon.resting_selector import MAX_REST_SECONDS, RestingSelector
from ingestor.daemon.standby import Standby, build_standby
from ingestor.daemon.status_snapshot import StatusSources, build_status
from ingestor.errors import ConfigError, IngestorError, SpoolFailed
from ingestor.monitoring import log_setup
from ingestor.monitoring.coverage_strips import CoverageCache, StateSpan
from ingestor.monitoring.http_server import StatusServer
from ingestor.monitoring.latest_values import LatestValues
from ingestor.monitoring.load_history import LoadHistory
from ingestor.monitoring.metrics import Metrics
from ingestor.monitoring.sd_notify import SystemdNotifier, feed_watchdog, watchdog_seconds
from ingestor.monitoring.status import RecentErrors, SharedStatus, Status, check_health
from ingestor.pipeline.registrar import Rewind
from ingestor.provider.auth import TokenSource
from ingestor.provider.subscriptions.activity import ActivityTracker
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff, Supervisor
from ingestor.spool.chunk_store import SpoolUnreadable
from ingestor.store.engine import Engine, make_engine
from ingestor.store.open_database import open_database
from ingestor.store.read import status_queries

DRAIN_SECONDS = 9.0
LAST_COMMIT_SECONDS = 1.0  # for the transaction in progress; the database rolls back one that takes longer

log = logging.getLogger(__name__)


class Service:
    """One daemon. ``run`` it in an event loop, ``stop`` it from within that loop or by a signal."""

    def __init__(self, config: Config, api_key: SecretStr) -> None:
        """Take the locks and recover the spool. Raises AlreadyLocked, SpoolFailed, OSError.

        Call it before the event loop runs, so that these errors are reported before anything starts.
        """
        self._config = config
        self._api_key = api_key
        self._started_at = datetime.now(UTC)
        self._systemd = SystemdNotifier()
        self._engine = make_engine(config.database.url.get_secret_value(), known_server=lambda: self._spool.server)
        self._database_lock = factory.lock_database(config.database.url.get_secret_value())
        self._spool = factory.build_spool(config)
        self._selector: RestingSelector | None = None
        self._recent_errors = RecentErrors()
        self._values, self._history = LatestValues(), LoadHistory()
        self._metrics = Metrics(self.status)
        self._fact_limit = FactLimit(lambda: self._spool.full)
        self._activity = ActivityTracker()
        self._instances = InstanceCache(self._read_instances)
        self._writer = factory.build_writer(
            config,
            self._spool,
            self._engine,
            on_decoded=self._activity.record,
            on_batch=self._metrics.batch_seconds.observe,
            on_rows=self._values.add_rows,
            on_outage=_log_outage,
            on_lost=self._on_data_lost,
            on_other_run=self._on_other_run,
            on_new_instance=self._on_new_instance,
            on_rewound=self._on_rewound,
        )
        self._writer_thread = threading.Thread(target=self._run_writer, name="writer", daemon=True)
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url: str | None = None  # of the status page, once its port is open

    def make_loop(self) -> asyncio.AbstractEventLoop:
        """Return an event loop to ``run`` in that rests while data flows. Any other works too, and costs more."""
        self._selector = RestingSelector(min(factory.sync_seconds(self._config), MAX_REST_SECONDS))
        return asyncio.SelectorEventLoop(self._selector)

    async def run(self) -> None:
        """Run until ``stop``, SIGTERM or SIGINT. Raises the error that ended it: SpoolFailed, SchemaTooNew, …"""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(log_setup.loop_error_handler(self._metrics.uncaught_errors.inc))
        self._stop_requested, self._drain_ended, self._writer_ended = (asyncio.Event() for _ in range(3))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # blocked by `ingestor run` until now
        async with AsyncExitStack() as stack:
            await self._start(stack)
            await self._stop_requested.wait()
            self._systemd.stopping()
            await self._shut_down()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Shut down, as SIGTERM does. The second call does not wait for the database any longer."""
        if self._stop_requested.is_set():
            self._drain_ended.set()
            self._writer.stop()
        self._stop_requested.set()

    def status(self) -> Status:
        """Return the daemon's status. Call it in the event loop, after ``run`` has started."""
        return build_status(self._status_sources)

    # -- start

    async def _start(self, stack: AsyncExitStack) -> None:
        self._build(stack)
        server = StatusServer(
            self._config.http.listen,
            snapshot=self.status,
            metrics=self._metrics,
            values=self._values,
            history=lambda: self._history.to_json(boottime()),
            coverage=CoverageCache(self._read_coverage).to_json,
        )
        await stack.enter_async_context(server)
        self.url = server.url
        handlers = build_handlers(
            status=self.status,
            reloader=self._reloader,
            repair=self._repair,
            spool=self._spool,
            database_url=self._config.database.url.get_secret_value(),
        )
        await stack.enter_async_context(control_server(self._config.spool.path, handlers))
        self._writer_thread.start()
        self._repair.start()
        self._systemd.ready("receiving")
        self._start_tasks()

    def _build(self, stack: AsyncExitStack) -> None:
        config = self._config
        selector = self._selector
        self._spool.start(self._fail, selector.rest if selector else None)
        # Before what is recorded by it, so that a step after that is noticed.
        clocks = Clocks(selector.came_at, selector.rest_seconds) if selector else Clocks()
        for fact in factory.startup_facts(self._spool, config, clocks.read()):
            self._record(fact)
        self._scheduler = scheduler.JobScheduler()
        self._scheduler.start()
        stack.callback(self._scheduler.shutdown)
        permit = Permit(-math.inf) if config.provider.standby else Permit()
        self._build_receiver(stack, clocks, permit)
        self._repair = factory.build_repair_worker(
            config,
            lambda: self._tokens.api_key.value,
            self._spool,
            self._writer,
            self._engine,
            self._record,
            lambda: permit.held,
        )
        self._reloader = ConfigReloader(
            config, self._apply, self._record, on_begin=self._systemd.reloading, on_end=self._on_reload_end
        )
        self._status_sources = StatusSources(
            reloader=self._reloader,
            instance=factory.instance_name(config),
            started_at=self._started_at,
            database_kind=self._engine.dialect.name,
            spool=self._spool,
            writer=self._writer.status,
            supervisor=self._supervisor.status,
            tokens=self._tokens.status,
            recent_errors=self._recent_errors,
            standby=lambda: self._standby.status() if self._standby else None,
            shared=self._instances.newest,
        )

    def _build_receiver(self, stack: AsyncExitStack, clocks: Clocks, permit: Permit) -> None:
        """Build what uses the API key to receive, and what keeps the permit for that."""
        config, provider = self._config, self._config.provider
        self._tokens = TokenSource(
            provider.url + provider.token_path,
            self._api_key,
            provider.token,
            self._scheduler.at,
            ca_file=provider.ca_file,
            proxy=config.proxy,
            key_file=config.key_file,
            permit=permit,
        )
        self._tokens.api_key.on_changed.append(self._on_key_changed)
        stack.push_async_callback(self._tokens.close)
        self._supervisor = Supervisor(
            provider,
            config.subscriptions,
            self._tokens,
            self._spool,
            self._record,
            self._activity,
            clocks,
            config.proxy,
            permit,
        )
        clocks.on_interruption.append(lambda *_: self._scheduler.reschedule_all())
        self._standby: Standby | None = None
        if provider.standby:
            standby = build_standby(config, self._spool, permit, self._supervisor, self._record)
            clocks.on_interruption.append(lambda *_: standby.wake())
            self._standby = standby

    def _start_tasks(self) -> None:
        first_seconds = scheduler.FIRST_RETENTION_SECONDS
        every = self._scheduler.every
        every("retention", self._writer.request_retention, scheduler.RETENTION_SECONDS, first_seconds=first_seconds)
        every("repair", self._repair.wake, scheduler.REPAIR_SECONDS, first_seconds=scheduler.FIRST_REPAIR_SECONDS)
        self._start_task(self._supervisor.run(), "supervisor")
        self._start_task(heartbeat.send_heartbeats(self._spool, self._supervisor), "heartbeat")
        self._start_task(heartbeat.watch_clocks(self._supervisor.clocks), "clocks")
        if self._standby:
            self._start_task(self._standby.run(), "standby")
        self._start_task(watchers.watch_spool_level(self._spool, self._supervisor, self._record), "spool level")
        self._start_task(self._instances.keep_fresh(), "instances")
        self._start_task(watchers.record_load(self._history, self._spool, self._writer.status), "history")
        if self._config.watch:
            self._start_task(self._reloader.watch(self._start_reload), "config file")
        if seconds := watchdog_seconds():
            watchdog = feed_watchdog(self._systemd, seconds, lambda: check_health(self.status()).ok)
            self._start_task(watchdog, "watchdog")

    def _start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)
        self._tasks.add(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._fail(task.exception())

    # -- shutdown

    def _fail(self, error: BaseException | None) -> None:
        """Shut down because of an error. The first one decides the exit code; systemd restarts the daemon."""
        if self._failure is None:
            self._failure = error
            is_mistake = getattr(error, "exit_code", IngestorError.exit_code) == IngestorError.exit_code
            log.critical("fatal error, shutting down: %s", error, exc_info=error if is_mistake else None)
        self._stop_requested.set()

    async def _shut_down(self) -> None:
        """Close the connections, sync the spool, let the writer drain it."""
        await self._supervisor.stop()
        await self._repair.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._standby:
            await self._standby.release()
        if self._spool.failure is None:
            for summary in self._fact_limit.flush():
                self._spool.append(summary)
            self._record(Fact("stopped", wall_us(), {"reason": "daemon stopped"}))
            heartbeat.send_heartbeat(self._spool, self._supervisor)
            try:
                await self._spool.flush()
            except SpoolFailed as error:
                self._fail(error)
        await self._drain()
        await self._spool.close()
        self._engine.dispose()
        self._database_lock.close()

    async def _drain(self) -> None:
        if self._spool.failure is None:
            self._writer.drain()
            await _wait(self._drain_ended, DRAIN_SECONDS)
        self._writer.stop()
        await _wait(self._writer_ended, LAST_COMMIT_SECONDS)
        left = self._spool.synced - self._writer.status.position
        if left > 0:
            log.warning("entries remain in the spool; the next start writes them", extra={"entries": left})
        else:
            log.info("all received data is in the database; exiting")

    # -- reload

    def _start_reload(self) -> None:
        if not self._reloader.is_waiting:
            self._start_task(self._reload_in_background(), "reload")

    async def _reload_in_background(self) -> None:
        with suppress(ConfigError, ControlError):  # log and status report it, and no command waits for a response
            await self._reloader.reload()

    def _on_reload_end(self) -> None:
        if not self._stop_requested.is_set():  # systemd must not receive READY after STOPPING
            self._systemd.ready("receiving")

    def _apply(self, config: Config) -> SubscriptionDiff:
        if self._stop_requested.is_set():
            raise ControlError("the daemon is shutting down; the next start reads the config")
        self._tokens.api_key.replace(require_api_key(config), config.key_file)
        return self._supervisor.apply(config.subscriptions)

    # -- callbacks

    def _record(self, fact: Fact) -> None:
        """Put a fact into the spool, and pass it to all that report it, so that they cannot disagree."""
        for entry in self._fact_limit.select(fact, boottime()):
            self._spool.append(entry)
        for report in (log_setup.log_fact, self._metrics.on_fact, self._recent_errors.on_fact):
            report(fact)

    def _on_key_changed(self) -> None:
        self._record(Fact("key_changed", wall_us(), {"reason": "API key changed"}))

    def _read_coverage(self, since: datetime) -> Iterator[StateSpan]:
        """Read this instance's coverage from the database. Blocking; called in a thread of its own."""
        with self._open_database() as engine:
            for row in status_queries.load_state_spans(engine, self._spool.spool_id, since):
                yield StateSpan(**row)

    def _read_instances(self) -> SharedStatus:
        """Read which instances share the database. Blocking; called in a thread of its own."""
        with self._open_database() as engine:
            return load_shared_status(engine, self._spool.spool_id)

    def _open_database(self) -> AbstractContextManager[Engine]:
        """Open it to read. A primary that was replaced and came back would show a state of long ago."""
        url = self._config.database.url.get_secret_value()
        return open_database(url, known_server=lambda: self._spool.server)

    # -- the writer's thread

    def _run_writer(self) -> None:
        try:
            self._writer.run()
        except Exception as error:
            self._call_in_loop(self._fail, error)
            if isinstance(error, SpoolUnreadable):
                self._spool.mark_corrupt()
        finally:
            self._call_in_loop(self._drain_ended.set)
            self._call_in_loop(self._writer_ended.set)

    def _call_in_loop(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # a statement took longer than the shutdown, and the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _on_data_lost(self, reason: str, since_us: int | None) -> None:
        """Record that the database lacks what the spool no longer has, with ``since_us`` in coverage too."""
        detail = {"reason": reason, "first_seq": self._spool.first_seq()}
        self._call_in_loop(self._record_loss, detail, since_us)

    def _record_loss(self, detail: dict[str, Any], since_us: int | None) -> None:
        fact = Fact("lost", wall_us(), detail)
        if since_us is not None:
            subscriptions = tuple(self._supervisor.status().subscriptions)
            fact = Fact("lost", wall_us(), detail, "lost", subscriptions, since_us)
        self._record(fact)

    def _on_other_run(self, reason: str) -> None:
        """Record that another run writes with a copy of our spool, so that we became another instance."""
        self._call_in_loop(self._record, Fact("copied", wall_us(), {"reason": reason}))

    def _on_new_instance(self, complete_since_us: int | None) -> None:
        """Record the state of every subscription again: a new instance begins without any."""
        self._call_in_loop(self._supervisor.rerecord_states, complete_since_us)

    def _on_rewound(self, rewind: Rewind) -> None:
        """Record that entries are written again, because the database went back in time."""
        self._call_in_loop(self._record, rewind.to_fact(wall_us()))


def _log_outage(error: str, delay_seconds: float) -> None:
    fields = {"reason": error, "retry_in_seconds": round(delay_seconds, 1)}
    log.warning(
        "the database is unavailable, retrying until it is back; received data stays in the spool", extra=fields
    )


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
