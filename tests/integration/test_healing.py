"""Outages of hours and days, as the clocks have it: afterwards the tables hold what a run without them would hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine

from ingestor import service
from ingestor.healing import plan
from ingestor.provider import rest
from ingestor.provider.simulator import Simulator

from ..support import expected
from ..support.daemon import Resident, until, write_config

CROWD = "/real-time/crowd-sentiment"
VOLUME = "/real-time/tweet-volume"
NOON = datetime(2026, 1, 5, 12, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
WINDOW_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class World:
    """A provider whose time is ours, and ours can be moved."""

    simulator: Simulator
    traveller: time_machine.Coordinates

    def move_to(self, at: datetime) -> None:
        """While nobody listens: what goes by is missed."""
        self.traveller.move_to(at)
        self.simulator.now = time.time()

    def rows(self, path: str, ticker: str, since: datetime) -> dict[expected.Key, float]:
        """What a run without an outage would hold."""
        market = self.simulator.market
        first, last = (market.bucket(path, at) for at in (since.timestamp(), self.simulator.now))
        made = market.rows(path, {"ticker": ticker}, first, last, "numbers")
        return expected.current([_Emitted(path, made)])


@dataclass(frozen=True, slots=True)
class _Emitted:
    path: str
    rows: list[dict[str, Any]]


@pytest.fixture
async def world(make_simulator: Callable[..., Any]) -> Any:
    with time_machine.travel(NOON, tick=True) as traveller:
        made = await make_simulator(interval_seconds=None, window_seconds=WINDOW_SECONDS, started_at=time.time())
        yield World(made, traveller)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_HEALING_SECONDS", 0.2)
    monkeypatch.setattr(service, "HEALING_SECONDS", 0.3)
    monkeypatch.setattr(rest, "SPACING_SECONDS", 0.0)


REPAIRS = "SELECT kind, state, error, new_rows, from_ts AS from_at, to_ts AS to_at FROM repairs ORDER BY from_ts"


async def test_an_outage_of_minutes_is_healed_by_the_first_answer_and_one_of_hours_by_history(
    world: World, database_url: str, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path, url=world.simulator.url, database_url=database_url, subscriptions={CROWD: ["AAPL", "ON"]}
    )
    async with Resident(config, world.simulator.api_key) as daemon:
        await daemon.live()
        await until(lambda: len(daemon.books.current()) == 120)
    world.move_to(NOON + 40 * MINUTE)
    async with Resident(config, world.simulator.api_key) as daemon:
        await daemon.live()
        await until(lambda: [one["state"] for one in daemon.books.rows(REPAIRS)] == ["done"] * 4)
        print(daemon.books.rows(REPAIRS), daemon.books.gaps("AAPL"))
    world.move_to(NOON + 6 * HOUR)
    async with Resident(config, world.simulator.api_key) as daemon:
        await daemon.live()
        await asyncio.sleep(2)
        print(daemon.books.rows(REPAIRS), daemon.books.gaps("AAPL"))
