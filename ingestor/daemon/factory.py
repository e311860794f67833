"""The daemon's parts as the config wants them: for the daemon, and for commands that do its work when none runs."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ingestor import __version__
from ingestor.config import Config
from ingestor.core.clock import wall_us
from ingestor.core.entries import Fact
from ingestor.core.files import FileLock
from ingestor.errors import DatabaseUnavailable, PermissionDenied
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.decoder import Decoder
from ingestor.pipeline.writer import Writer
from ingestor.provider import catalog
from ingestor.provider.rest_api import RestClient
from ingestor.repair import RepairWorker
from ingestor.spool.spool import Spool
from ingestor.store import migrate
from ingestor.store.engine import Engine, make_engine, sqlite_path, translate_errors
from ingestor.store.maintenance.retention import Retention
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo


def lock_database(url: str) -> FileLock | None:
    """A SQLite file is written by one daemon; PostgreSQL takes several."""
    path = sqlite_path(url)
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _lock_beside(path)
    except OSError as error:
        what, elsewhere = f"{path.parent}: {error.strerror}", "or name another place in database.url"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # not to be tried again in vain, as 77 would say
            raise DatabaseUnavailable(f"{what}; make room there, {elsewhere}") from None
        raise PermissionDenied(f"{what}; let this user write there, {elsewhere}") from None


def _lock_beside(path: Path) -> FileLock:
    return FileLock(path.with_name(path.name + ".lock"), "stop it, or give this daemon a database of its own")


def startup_facts(spool: Spool, config: Config) -> Iterator[Fact]:
    """What coverage must know before anything new is said: how the run before ended, and what is wanted now."""
    wanted = tuple(one.key for one in config.subscriptions)
    if spool.quarantined:
        reason = f"the spool could not be read; it is kept in {spool.quarantined}"
        since_us = max((part.stat().st_mtime_ns // 1000 for part in spool.quarantined.iterdir()), default=None)
        yield Fact("lost", wall_us(), {"reason": reason}, "lost", wanted, since_us)
    elif spool.crashed and spool.head:
        reason = "the run before this one ended without a word"
        yield Fact("crashed", wall_us(), {"reason": reason}, "crashed", (), spool.last_heartbeat_us)
    detail = {"version": __version__, "config_sha256": config.sha256, "reason": "not in the config any more"}
    yield Fact("started", wall_us(), detail, "stopped", wanted, others=True)


def instance_name(config: Config) -> str:
    return config.instance or socket.gethostname()


LEAST_SYNC_SECONDS = 0.005  # a sync takes a disk milliseconds, and more of them would leave it no time


def sync_seconds(config: Config) -> float:
    """How long an entry may wait for others before it is synced: not longer than it may wait for company in all."""
    return min(config.spool.sync_every, max(config.database.batch.max_wait, LEAST_SYNC_SECONDS))


def build_spool(config: Config) -> Spool:
    """Open it, or create it. Raises AlreadyLocked, SpoolFailed."""
    return Spool(config.spool.path, max_bytes=config.spool.max_bytes, sync_every_seconds=sync_seconds(config))


def build_writer(config: Config, spool: Spool, engine: Engine, **hooks: Any) -> Writer:
    """The writer of one spool into the configured database; ``hooks`` are its ``on_…`` arguments."""
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

    return Writer(
        spool,
        BatchWriter(engine, database.retention.samples),
        Decoder(catalog.metrics_of, catalog.feed_name),
        BatchPolicy(
            max_rows=database.batch.max_rows,
            max_wait_seconds=database.batch.max_wait,
            already_waited_seconds=sync_seconds(config),  # the oldest of those that a sync brings has waited so long
        ),
        instance,
        prepare=prepare,
        keep_payloads=database.retention.payloads != 0.0,
        retention=Retention(engine, database.retention),
        **hooks,
    )


def build_repair_worker(
    config: Config,
    api_key: Callable[[], SecretStr],
    spool: Spool,
    writer: Writer,
    engine: Engine,
    record: Callable[[Fact], object],
) -> RepairWorker:
    """What repairs gaps in the configured database. Inside the running loop only."""
    return RepairWorker(
        RestClient(config.provider.url, api_key, ca_file=config.provider.ca_file, proxy=config.proxy),
        spool,
        writer,
        Decoder(catalog.metrics_of, catalog.feed_name),
        record,
        write_to=engine,
        read_from=make_engine(config.database.url.get_secret_value(), read_only=True),
    )
