"""Two daemons on one PostgreSQL database with the same feed: killing either leaves no gap and no duplicate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ..support.daemon import until, write_config
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedDaemon, ForkServer
from ..support.numbered_feed import KEY, PATH, TICKERS, NumberedFeed
from ..support.reconciliation import assert_balances, reconcile, spool_head

KILLS = 4


@pytest.mark.postgres
async def test_killing_one_of_two_daemons_leaves_no_gap_or_duplicate(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path
) -> None:
    pick = random.Random(0)
    async with NumberedFeed(rate=200) as feed, pair(fork_server, feed, postgres_url, tmp_path) as daemons:
        for number in range(KILLS):
            victim = daemons[number % 2]
            await asyncio.sleep(pick.uniform(0.1, 0.8))
            victim.kill()
            await asyncio.sleep(pick.uniform(0, 0.4))
            victim.start()
            await victim.wait_until_live()
        feed.rate = 0
        for daemon in daemons:
            assert await daemon.terminate(timeout_seconds=20) == 0
            await assert_balances(daemon, fork_server)
        db = DbReader(postgres_url)
        db.assert_consistent()
        found = reconcile(db, feed.event_count, feed.acknowledged)
        print(found)
        assert (found.lost, found.duplicated) == (frozenset(), frozenset())
        assert found.stored > 1.2 * found.sent  # both have received
        assert_all_written(db, tmp_path)
        assert_no_gap_between(db)


@asynccontextmanager
async def pair(
    fork_server: ForkServer, feed: NumberedFeed, url: str, folder: Path
) -> AsyncIterator[list[ForkedDaemon]]:
    """Two live daemons, killed at the end."""
    daemons = [
        ForkedDaemon(fork_server, config, KEY) for config in (config_of(feed, url, folder / name) for name in "ab")
    ]
    async with daemons[0], daemons[1]:
        for daemon in daemons:
            await daemon.wait_until_live()
        await until(lambda: feed.acknowledged)
        yield daemons


def config_of(feed: NumberedFeed, url: str, folder: Path) -> Path:
    folder.mkdir()
    return write_config(folder, url=feed.url, database_url=url, subscriptions={PATH: TICKERS})


def assert_all_written(db: DbReader, folder: Path) -> None:
    positions = {row["spool_id"]: row["position"] for row in db.rows("SELECT spool_id, position FROM instances")}
    heads = [spool_head(folder / name / "spool") for name in "ab"]
    assert positions == {head["spool_id"]: head["next_seq"] - 1 for head in heads}


def assert_no_gap_between(db: DbReader) -> None:
    """Assert that at least one daemon was live at any moment, from the first live state to the last."""
    for ticker in TICKERS:
        assert db.states(ticker).count("crashed") == KILLS
        (before,) = db.gaps(ticker)
        assert before["states"].startswith("pending")
