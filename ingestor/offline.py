"""What commands do themselves when no daemon runs: take its locks, do the same work, let go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ingestor.config import Config
from ingestor.errors import DatabaseUnavailable, SpoolFailed
from ingestor.pipeline.spool import Spool
from ingestor.service import build_writer, lock_database, past, retry_letters
from ingestor.store.engine import connect


def retry(config: Config, ids: Sequence[int]) -> int:
    """Try dead letters again, and write what follows. Raises Held if a daemon runs, DatabaseUnavailable."""
    url = config.database.url.get_secret_value()
    lock = lock_database(url)
    try:
        return asyncio.run(_retry(config, url, ids))
    finally:
        if lock:
            lock.release()


async def _retry(config: Config, url: str, ids: Sequence[int]) -> int:
    spool = Spool(config.spool.path, max_bytes=config.spool.max_bytes, sync_every_seconds=config.spool.sync_every)
    spool.start(_give_up)
    engine = connect(url)
    writer = build_writer(config, spool, engine, on_outage=_no_patience)
    try:
        for fact in past(spool, config):
            spool.append(fact)
        count = await retry_letters(spool, engine, ids)
        writer.drain()
        await asyncio.to_thread(writer.run)
        return count
    finally:
        await spool.close()
        engine.dispose()


def _no_patience(error: str, _delay_seconds: float) -> None:
    """A daemon waits for its database; a person at a terminal wants to know."""
    raise DatabaseUnavailable(error)


def _give_up(failure: SpoolFailed) -> None:
    raise failure
