"""Cut the power under load: everything acknowledged must be on the disk, and a new daemon must find it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ..support.daemon import until, write_config
from ..support.faulty_disks import CuttableDisk, cuttable_disk, ext4
from ..support.fork_server import ForkedDaemon, ForkServer
from ..support.numbered_feed import KEY, PATH, TICKERS, NumberedFeed
from ..support.reconciliation import Reconciliation, assert_complete, assert_not_live_when_killed, assert_recovers

CUTS = 4


@dataclass(frozen=True, slots=True)
class PowerCut:
    """A power cut: the content of the disk, and the events acknowledged before."""

    image: Path
    acknowledged: frozenset[int]
    at: datetime


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[CuttableDisk]:
    with cuttable_disk(tmp_path) as made:
        yield made


async def test_power_cut_keeps_acknowledged_events_once(
    disk: CuttableDisk, fork_server: ForkServer, tmp_path: Path
) -> None:
    pick = random.Random(0)
    power_cuts = []
    async with NumberedFeed(rate=400) as feed:
        async with ForkedDaemon(fork_server, config_on(disk.folder, feed), KEY) as daemon:
            await daemon.wait_until_live()
            await until(lambda: feed.acknowledged)
            for number in range(CUTS):
                await asyncio.sleep(pick.uniform(0.2, 1))
                power_cuts.append(cut(disk, feed, tmp_path / f"cut-{number}"))
        feed.rate = 0
        for power_cut in power_cuts:
            print(await resurrected(fork_server, feed, power_cut))


def config_on(folder: Path, feed: NumberedFeed) -> Path:
    url = f"sqlite:///{folder / 'ingestor.db'}"
    return write_config(folder, url=feed.url, database_url=url, subscriptions={PATH: TICKERS})


def cut(disk: CuttableDisk, feed: NumberedFeed, image: Path) -> PowerCut:
    acknowledged = frozenset(feed.acknowledged)
    disk.copy_as_after_power_cut(image)
    return PowerCut(image, acknowledged, datetime.now(UTC))


async def resurrected(fork_server: ForkServer, feed: NumberedFeed, power_cut: PowerCut) -> Reconciliation:
    with ext4(power_cut.image, power_cut.image.with_suffix(".mounted")) as folder:
        daemon = ForkedDaemon(fork_server, config_on(folder, feed), KEY)
        await assert_recovers(daemon, fork_server)
        assert_not_live_when_killed(daemon.db, [power_cut.at])
        return assert_complete(daemon.db, folder / "spool", feed.event_count, power_cut.acknowledged)
