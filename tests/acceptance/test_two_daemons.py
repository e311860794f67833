"""Two daemons on one PostgreSQL database with the same feed: killing either leaves no gap and no duplicate."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ..support.daemon import until, write_config
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedDaemon, ForkServer
from ..support.numbered_feed import KEY, PATH, TICKERS, NumberedFeed
from ..support.reconciliation import assert_balances, reconcile, spool_head

KILLS = 4
SHORT_INTERVALS = json.dumps({"ingestor.daemon.heartbeat.HEARTBEAT_SECONDS": 0.1})  # after a kill, coverage ends at one


@pytest.mark.postgres
async def test_killing_one_of_two_daemons_leaves_no_gap_or_duplicate(
    fork_server: ForkServer, postgres_url: str, tmp_path: Path
) -> None:
    pick = random.Random(0)
    async with NumberedFeed(rate=200) as feed, pair(fork_server, feed, postgres_url, tmp_path) as daemons:
        for number in range(KILLS):
            victim = daemons[number % 2]
            await both_have_beaten(DbReader(postgres_url), datetime.now(UTC))
            await asyncio.sleep(pick.uniform(0, 0.4))
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
        stored = db.column("SELECT count(*) FROM payloads GROUP BY instance_id")
        assert len(stored) == 2 and min(stored) > found.sent / 5, stored
        assert_all_written(db, tmp_path)
        assert_no_gap_between(db)


async def both_have_beaten(db: DbReader, since: datetime) -> None:
    """Wait until the coverage of both reaches beyond that time, whatever happens to one of them then."""
    await until(lambda: db.scalar(f"SELECT count(*) FROM instances WHERE heartbeat_at > '{since}'") == 2)


@asynccontextmanager
async def pair(
    fork_server: ForkServer, feed: NumberedFeed, url: str, folder: Path
) -> AsyncIterator[list[ForkedDaemon]]:
    """Two live daemons, killed at the end."""
    daemons = [
        ForkedDaemon(fork_server, config_of(feed, url, folder / name), KEY, TEST_CONSTANTS=SHORT_INTERVALS)
        for name in "ab"
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
