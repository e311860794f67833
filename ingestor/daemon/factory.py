"""Build the daemon's parts from the config: for the daemon, and for commands that do its work while it is stopped."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ingestor import __version__
from ingestor.config import Config
from ingestor.core.clock import MIN_STEP_SECONDS, ClockReading, Interruption, boot_id, wall_us
from ingestor.core.entries import Fact
from ingestor.core.files import FileLock, check_private
from ingestor.errors import DatabaseUnavailable, PermissionDenied
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.decoder import Decoder
from ingestor.pipeline.writer import Writer
from ingestor.provider import catalog
from ingestor.provider.rest_api import RestClient
from ingestor.repair import RepairWorker, repeat_backfill
from ingestor.spool.header import SpoolHeartbeat
from ingestor.spool.keep import Keep
from ingestor.spool.spool import Spool
from ingestor.store import migrate
from ingestor.store.engine import Engine, make_engine, postgres_hosts, sqlite_path, translate_errors
from ingestor.store.maintenance.retention import Retention
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo

MIN_SYNC_SECONDS = 0.005  # a sync takes the disk milliseconds; syncing more often would leave it no other time


def lock_database(url: str) -> ExitStack:
    """Lock a SQLite file, which only one daemon may write to, until the returned stack is closed.

    Does nothing for PostgreSQL, which allows several. Raises AlreadyLocked, DatabaseUnavailable, PermissionDenied; the
    last also for a file with several names (hard links), of which each would have a lock and a WAL of its own.
    """
    stack = ExitStack()
    path = sqlite_path(url)
    if path is None:
        return stack
    try:
        path = Path(os.path.realpath(path))  # the file that a link points to: every path to it has one lock
        path.parent.mkdir(parents=True, exist_ok=True)
        check_private(path)
        lock_path = path.with_name(path.name + ".lock")
        stack.callback(FileLock(lock_path, "stop it, or give this daemon a database of its own").release)
    except OSError as error:
        problem, alternative = f"{path.parent}: {error.strerror}", "or choose another path in database.url"
        # These may pass, and after 77 systemd would not restart the daemon.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise DatabaseUnavailable(f"{problem}; free some space there, {alternative}") from None
        raise PermissionDenied(f"{problem}; let this user write there, {alternative}") from None
    return stack


def startup_facts(spool: Spool, config: Config, now: ClockReading) -> Iterator[Fact]:
    """Yield what coverage must record first: how the previous run ended, and which subscriptions the config has now."""
    subscriptions = tuple(subscription.key for subscription in config.subscriptions)
    loss, since_us = spool.loss, None
    if loss:
        since_us = spool.believable_us and min(spool.believable_us, now.wall_us)  # the clock may have been set back
        yield Fact("lost", now.wall_us, {"reason": loss}, "lost", subscriptions, since_us)
    elif spool.crashed and spool.head:
        yield from _crash_facts(spool.last_heartbeat, now.wall_us)
    if spool.last_heartbeat and (restart := clock_restart(spool.last_heartbeat, now, boot_id())):
        yield restart
    detail = {"version": __version__, "config_sha256": config.sha256, "reason": "removed from the config"}
    yield Fact("started", now.wall_us, detail, "stopped", subscriptions, since_us, others=True)


def _crash_facts(last: SpoolHeartbeat | None, now_us: int) -> Iterator[Fact]:
    detail = {"reason": "previous run did not shut down cleanly"}
    if last:
        for group, heard_us in last.heard_us.items():
            connection = {"path": group[0], "params": group[1]}
            since_us = min(last.at_us, heard_us)
            yield Fact("last_heard", now_us, detail | connection, "crashed", since_us=since_us, group=group)
    yield Fact("crashed", now_us, detail, "crashed", (), last and last.at_us)


def clock_restart(last: SpoolHeartbeat, now: ClockReading, boot: str) -> Fact | None:
    """Return the fact that coverage goes on by another clock than at the last heartbeat; None if it is the same.

    The boottime says how long the daemon was down. If the machine was started again, it only says how long at least.
    """
    if last.boot_id == boot:
        until_us = last.at_us + round((now.boottime - last.boottime) * 1_000_000)
        since_us, step_seconds = now.wall_us_at(last.boottime), (now.wall_us - until_us) / 1_000_000
        if abs(step_seconds) < MIN_STEP_SECONDS:
            return None
        reason = f"{Interruption(0.0, step_seconds).reason} while the daemon was down"
    elif last.boot_id:
        until_us, since_us = last.at_us, now.wall_us_at(0.0)
        reason = "the machine was started again; it is not known for how long it was down"
    elif last.at_us > now.wall_us:  # from a release that did not record the boottime
        until_us, since_us, reason = last.at_us, now.wall_us, "the clock was set back while the daemon was down"
    else:
        return None
    return Fact("clock_restarted", now.wall_us, {"reason": reason}, since_us=since_us, until_us=until_us)


def instance_name(config: Config) -> str:
    """Return the label of this daemon in the database."""
    return config.instance or socket.gethostname()


def sync_seconds(config: Config) -> float:
    """Return for how long the spool collects entries before it syncs: at most as long as a batch may wait for them."""
    return min(config.spool.sync_every, max(config.database.batch.max_wait, MIN_SYNC_SECONDS))


def build_spool(config: Config) -> Spool:
    """Open the spool, or create it. Raises AlreadyLocked, SpoolTooNew, SpoolFailed."""
    spool, keep = config.spool, Keep(config.spool.keep.time, config.spool.keep.size)
    return Spool(spool.path, max_bytes=spool.max_bytes, sync_every_seconds=sync_seconds(config), keep=keep)


def build_writer(config: Config, spool: Spool, engine: Engine, **hooks: Any) -> Writer:
    """Build the writer from the spool to the configured database. ``hooks`` are its ``on_…`` arguments."""
    database = config.database
    instance = InstanceInfo(
        spool_id=spool.spool_id,
        name=instance_name(config),
        version=__version__,
        config_sha256=config.sha256,
        started_us=wall_us(),
    )

    def prepare() -> None:
        with translate_errors():
            (migrate.upgrade if database.migrate == "auto" else migrate.verify_revision)(engine)

    writer = Writer(
        spool,
        BatchWriter(engine, database.retention.samples),
        Decoder(catalog.metrics_of, catalog.feed_name),
        BatchPolicy(
            max_rows=database.batch.max_rows,
            max_wait_seconds=database.batch.max_wait,
            already_waited_seconds=sync_seconds(config),  # the oldest entry of a sync has waited for that long
        ),
        instance,
        prepare=prepare,
        keep_payloads=database.retention.payloads != 0.0,
        retention=Retention(engine, database.retention),
        repeat_backfill=partial(repeat_backfill, engine),
        **hooks,
    )
    if hosts := postgres_hosts(engine):
        hosts.on_slow_commit = writer.note_slow_commit
    return writer


def build_repair_worker(
    config: Config,
    api_key: Callable[[], SecretStr],
    spool: Spool,
    writer: Writer,
    engine: Engine,
    record: Callable[[Fact], object],
    may_request: Callable[[], bool] = lambda: True,
) -> RepairWorker:
    """Build the worker that repairs gaps in the configured database. Must be called inside the running loop."""
    return RepairWorker(
        RestClient(config.provider.url, api_key, ca_file=config.provider.ca_file, proxy=config.proxy),
        spool,
        writer,
        Decoder(catalog.metrics_of, catalog.feed_name),
        record,
        write_to=engine,
        read_from=make_engine(
            config.database.url.get_secret_value(), read_only=True, known_server=lambda: spool.server
        ),
        may_request=may_request,
    )
