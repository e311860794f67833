"""What commands do themselves when no daemon runs: take its locks, do the same work, let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pydantic import SecretStr

from ingestor.config import Config
from ingestor.daemon.factory import build_repair_worker, build_spool, build_writer, lock_database, startup_facts
from ingestor.errors import DatabaseUnavailable, SpoolFailed
from ingestor.pipeline.dead_letters import requeue_dead_letters
from ingestor.store.engine import make_engine
from ingestor.store.maintenance.repairs import BackfillRequest

LOOK_SECONDS = 0.5


def retry_dead_letters(config: Config, ids: Sequence[int]) -> int:
    """Try dead letters again, and write what follows. Raises Held if a daemon runs, DatabaseUnavailable."""
    url = config.database.url.get_secret_value()
    lock = lock_database(url)
    try:
        return asyncio.run(_retry(config, url, ids))
    finally:
        if lock:
            lock.release()


async def _retry(config: Config, url: str, ids: Sequence[int]) -> int:
    spool = build_spool(config)
    spool.start(_give_up)
    engine = make_engine(url)
    writer = build_writer(config, spool, engine, on_outage=_no_patience)
    try:
        for fact in startup_facts(spool, config):
            spool.append(fact)
        writing = asyncio.create_task(asyncio.to_thread(writer.run))
        retrying = asyncio.create_task(requeue_dead_letters(spool, engine, ids))
        await asyncio.wait([writing, retrying], return_when=asyncio.FIRST_COMPLETED)
        if writing.done():
            await writing  # raises: it ends by itself only if it cannot write
        count = await retrying
        writer.drain()
        await writing
        return count
    finally:
        writer.stop()
        await spool.close()
        engine.dispose()


def backfill(
    config: Config, api_key: SecretStr, wishes: Sequence[BackfillRequest], ended: Callable[[Sequence[int]], bool]
) -> None:
    """Begin or go on with the repairs, until ``ended`` says of their ids that nothing is left to wait for.

    Raises Held if a daemon runs, DatabaseUnavailable. What was interrupted goes on next time.
    """
    url = config.database.url.get_secret_value()
    lock = lock_database(url)
    try:
        asyncio.run(_backfill(config, api_key, wishes, ended))
    finally:
        if lock:
            lock.release()


async def _backfill(
    config: Config, api_key: SecretStr, wishes: Sequence[BackfillRequest], ended: Callable[[Sequence[int]], bool]
) -> None:
    spool = build_spool(config)
    spool.start(_give_up)
    engine = make_engine(config.database.url.get_secret_value())
    writer = build_writer(config, spool, engine, on_outage=_no_patience)
    healing = build_repair_worker(config, lambda: api_key, spool, writer, engine, spool.append)
    writing = asyncio.create_task(asyncio.to_thread(writer.run))
    try:
        for fact in startup_facts(spool, config):
            spool.append(fact)
        repairs = await healing.request(wishes)
        healing.only = frozenset(repairs)
        healing.start()
        while not writing.done() and not ended(repairs):
            healing.wake()
            await asyncio.wait({writing}, timeout=LOOK_SECONDS)
    finally:
        await healing.stop()
        writer.drain()
        try:
            await writing  # what ended it early is the reason for all else
        finally:
            await spool.close()
            engine.dispose()


def _no_patience(error: str, _delay_seconds: float) -> None:
    """A daemon waits for its database; a person at a terminal wants to know."""
    raise DatabaseUnavailable(error)


def _give_up(failure: SpoolFailed) -> None:
    raise failure
