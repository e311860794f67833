"""A reader that polls `ingestor.changes` while daemons write and are killed has everything, each value once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import ingestor

from ..support.daemon import until, write_config
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedCommand, ForkedDaemon, ForkServer
from ..support.numbered_feed import KEY, PATH, TICKERS, NumberedFeed
from .test_backfill import CROWD, SHORT_INTERVALS
from .test_two_daemons import pair

KILLS = 4
MANUAL = "SELECT state FROM repairs WHERE kind = 'manual'"
COLUMNS = ("feed", "metric", "ticker", "user_id", "ts", "value", "received_at", "source", "instance_id", "seq")


class Poller:
    """Reads with a cursor until the end of the block, and once more after it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._cursor = ""
        self.values: Counter[tuple[Any, ...]] = Counter()
        self.polls = 0  # that returned something

    def poll(self) -> None:
        rows, self._cursor = ingestor.changes(self._url, self._cursor)
        self.values.update(tuple(row[name] for name in COLUMNS) for row in rows)
        self.polls += bool(rows)

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        stopping = asyncio.Event()

        async def run() -> None:
            while not stopping.is_set():
                await asyncio.to_thread(self.poll)
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(run())
            yield
            stopping.set()
        self.poll()


def stored(db: DbReader) -> Counter[tuple[Any, ...]]:
    rows = [row for view in ("observations", "revisions") for row in db.rows(f"SELECT * FROM {view}")]
    return Counter(tuple(row[name] for name in COLUMNS) for row in rows)


def assert_all_told_once(poller: Poller, db: DbReader) -> None:
    db.assert_consistent()
    assert poller.values == stored(db)
    assert set(poller.values.values()) == {1}
    assert poller.polls > 2 * KILLS


@pytest.mark.postgres
async def test_reader_misses_nothing_of_two_daemons_that_are_killed(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path
) -> None:
    pick = random.Random(0)
    async with NumberedFeed(rate=200) as feed, pair(fork_server, feed, postgres_url, tmp_path) as daemons:
        poller = Poller(postgres_url)
        async with poller.polling():
            for number in range(KILLS):
                await asyncio.sleep(pick.uniform(0, 0.4))
                daemons[number % 2].kill()
                await asyncio.sleep(pick.uniform(0, 0.4))
                daemons[number % 2].start()
                await daemons[number % 2].wait_until_live()
            feed.rate = 0
            for daemon in daemons:
                assert await daemon.terminate(timeout_seconds=20) == 0
        assert_all_told_once(poller, DbReader(postgres_url))


async def test_reader_of_sqlite_misses_nothing_of_a_daemon_that_is_killed(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    pick = random.Random(0)
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    async with NumberedFeed(rate=200) as feed:
        config = write_config(tmp_path, url=feed.url, database_url=url, subscriptions={PATH: TICKERS})
        async with ForkedDaemon(fork_server, config, KEY) as daemon:
            await daemon.wait_until_live()
            poller = Poller(url)
            async with poller.polling():
                for _ in range(KILLS):
                    await asyncio.sleep(pick.uniform(0.1, 0.5))
                    daemon.kill()
                    daemon.start()
                    await daemon.wait_until_live()
                feed.rate = 0
                assert await daemon.terminate(timeout_seconds=20) == 0
            assert_all_told_once(poller, daemon.db)


@pytest.mark.postgres
async def test_reader_misses_nothing_of_repairs_and_backfills(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path, make_simulator: Callable[..., Any]
) -> None:
    simulator = await make_simulator(
        interval_seconds=0.05, step_seconds=60.0, cadence_seconds=60, started_at=time.time() - 2 * 86_400
    )
    db = DbReader(postgres_url)
    daemons = []
    for name in "ab":
        (tmp_path / name).mkdir()
        options = {"url": simulator.url, "database_url": postgres_url, "subscriptions": {CROWD: ["AAPL", "ON"]}}
        config = write_config(tmp_path / name, **options)
        daemons.append(ForkedDaemon(fork_server, config, simulator.api_key, TEST_CONSTANTS=SHORT_INTERVALS))
    first_day, last_day = (f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}" for days in (12, 9))
    backfill = ("backfill", "--ticker", "AAPL", "--from", first_day, "--to", last_day)
    async with daemons[0], daemons[1]:
        for daemon in daemons:
            await daemon.wait_until_live()
        poller = Poller(postgres_url)
        async with poller.polling():
            key = {"INGESTOR_PROVIDER__API_KEY": simulator.api_key, "TEST_CONSTANTS": SHORT_INTERVALS}
            command = (*backfill, "--config", daemons[0].config_file)
            async with ForkedCommand(fork_server, *command, folder=tmp_path, **key):
                await until(lambda: db.column(MANUAL))
            for daemon in daemons * 2:
                daemon.kill()
                await asyncio.sleep(0.3)
                daemon.start()
                await daemon.wait_until_live()
            await until(lambda: db.column(MANUAL) == ["done"])
            for daemon in daemons:
                assert await daemon.terminate(timeout_seconds=20) == 0
        assert_all_told_once(poller, db)
        assert db.scalar("SELECT count(*) FROM batches WHERE series_ranges IS NOT NULL") > 0
        assert db.scalar("SELECT count(*) FROM observations WHERE source = 'backfill'") > 4_000
