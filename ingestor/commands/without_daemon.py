"""Commands that change data, carried out without a daemon: take its locks, do its work, release them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

from pydantic import SecretStr

from ingestor.config import Config
from ingestor.core.clock import read_clocks, wall_us
from ingestor.core.entries import Fact
from ingestor.daemon.factory import build_repair_worker, build_spool, build_writer, lock_database, startup_facts
from ingestor.errors import DatabaseUnavailable, SpoolFailed
from ingestor.monitoring.log_setup import log_fact
from ingestor.pipeline.dead_letters import requeue_dead_letters
from ingestor.pipeline.registrar import Rewind
from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store.engine import Engine, make_engine
from ingestor.store.maintenance.repairs import BackfillRequest
from ingestor.store.open_database import name_database

POLL_SECONDS = 0.5


def retry_dead_letters(config: Config, ids: Sequence[int]) -> int:
    """Retry dead letters until the outcome is written. Raises AlreadyLocked if a daemon runs, DatabaseUnavailable."""
    url = config.database.url.get_secret_value()
    with name_database(url), lock_database(url):
        return asyncio.run(_retry_dead_letters(config, ids))


def backfill(
    config: Config,
    api_key: SecretStr,
    requests: Sequence[BackfillRequest],
    is_finished: Callable[[Sequence[int]], bool],
) -> None:
    """Start or resume repairs, until ``is_finished`` returns true for their ids.

    Raises AlreadyLocked if a daemon runs, DatabaseUnavailable. The same command resumes what was interrupted.
    """
    url = config.database.url.get_secret_value()
    with name_database(url), lock_database(url):
        asyncio.run(_backfill(config, api_key, requests, is_finished))


class _WritePath(NamedTuple):
    spool: Spool
    engine: Engine
    writer: Writer
    writing: asyncio.Task[None]


@asynccontextmanager
async def _write_path(config: Config) -> AsyncIterator[_WritePath]:
    """Run a writer, and drain the spool at the end. Raises what ended the writer: any other error follows from it."""
    spool = build_spool(config)
    spool.start(_raise_failure)
    engine = make_engine(config.database.url.get_secret_value(), known_server=lambda: spool.server)
    loop = asyncio.get_running_loop()

    def record(kind: str, reason: str, _since_us: int | None = None) -> None:
        loop.call_soon_threadsafe(spool.append, Fact(kind, wall_us(), {"reason": reason}))

    writer = build_writer(
        config,
        spool,
        engine,
        on_outage=_raise_outage,
        on_lost=partial(record, "lost"),
        on_other_run=partial(record, "copied"),
        on_rewound=lambda rewind: loop.call_soon_threadsafe(_record_rewind, spool, rewind),
    )
    for fact in startup_facts(spool, config, read_clocks()):
        spool.append(fact)
    writing = asyncio.create_task(asyncio.to_thread(writer.run))
    try:
        yield _WritePath(spool, engine, writer, writing)
    finally:
        writer.drain()
        try:
            await writing
        finally:
            await spool.close()
            engine.dispose()


async def _retry_dead_letters(config: Config, ids: Sequence[int]) -> int:
    async with _write_path(config) as path:
        retrying = asyncio.create_task(requeue_dead_letters(path.spool, path.engine, ids))
        await asyncio.wait([path.writing, retrying], return_when=asyncio.FIRST_COMPLETED)
        if path.writing.done():
            await path.writing  # raises, because the writer only ends by an error
        return await retrying


async def _backfill(
    config: Config,
    api_key: SecretStr,
    requests: Sequence[BackfillRequest],
    is_finished: Callable[[Sequence[int]], bool],
) -> None:
    async with _write_path(config) as path:
        repair = build_repair_worker(
            config, lambda: api_key, path.spool, path.writer, path.engine, record=path.spool.append
        )
        try:
            repair_ids = await repair.request(requests)
            repair.only_repair_ids = frozenset(repair_ids)
            repair.start()
            while not path.writing.done() and not is_finished(repair_ids):
                repair.wake()
                await asyncio.wait({path.writing}, timeout=POLL_SECONDS)
        finally:
            await repair.stop()


def _record_rewind(spool: Spool, rewind: Rewind) -> None:
    fact = rewind.to_fact(wall_us())
    spool.append(fact)
    log_fact(fact)


def _raise_outage(error: str, _delay_seconds: float) -> None:
    """End the command: unlike the daemon, a person at a terminal does not wait for the database."""
    raise DatabaseUnavailable(error)


def _raise_failure(failure: SpoolFailed) -> None:
    raise failure
