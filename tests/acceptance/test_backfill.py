"""``ingestor backfill`` with and without a daemon, killed, interrupted and repeated: every row is stored once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestor.repair.worker import NO_LATER_ROW
from tests.support.faulty_simulator import Fault, FaultySimulator

from ..support import expected_rows
from ..support.daemon import until, write_config
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedCommand, ForkedDaemon, ForkServer
from ..support.reconciliation import assert_balances

CROWD = "/real-time/crowd-sentiment"
REQUESTS = 8
WEEK = timedelta(days=7)
KILLS = 3
STATE = "SELECT state FROM repairs WHERE kind = 'manual'"
SHORT_INTERVALS = json.dumps(
    {"ingestor.provider.rest_api.SPACING_SECONDS": 0.02, "ingestor.daemon.scheduler.FIRST_REPAIR_SECONDS": 0.2}
)
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
END = MIDNIGHT - timedelta(days=1)  # up to which history is final: a row per hour does not prove the last hour of a day
START = END - REQUESTS * WEEK


class Backfill:
    """The same command for the same weeks each time, and what it must store."""

    def __init__(self, fork_server: ForkServer, simulator: FaultySimulator, database_url: str, folder: Path) -> None:
        self.simulator = simulator
        self.config = write_config(
            folder, url=simulator.url, database_url=database_url, subscriptions={CROWD: ["AAPL"]}
        )
        self.db = DbReader(database_url)
        self._fork_server = fork_server
        self._folder = folder

    def command(self, end: datetime = END, **environment: str) -> ForkedCommand:
        since, until_ = (f"{at:%Y-%m-%d}" for at in (START, end))
        arguments = ("backfill", "--ticker", "AAPL", "--from", since, "--to", until_, "--output", "json")
        key = {"INGESTOR_PROVIDER__API_KEY": self.simulator.api_key, "TEST_CONSTANTS": SHORT_INTERVALS}
        return ForkedCommand(
            self._fork_server, *arguments, "--config", self.config, folder=self._folder, **(key | environment)
        )

    def daemon(self) -> ForkedDaemon:
        return ForkedDaemon(self._fork_server, self.config, self.simulator.api_key, TEST_CONSTANTS=SHORT_INTERVALS)

    def assert_complete(self) -> None:
        """Check that every row of the provider is stored, and that the ledger balances."""
        market = self.simulator.market
        first, last = (market.bucket(CROWD, at.timestamp()) for at in (START, END))
        rows = market.rows(CROWD, {"ticker": "AAPL"}, first, last - 1, "numbers")
        held = self.db.current()
        everything = expected_rows.current([Emitted(CROWD, rows)])
        assert {key: held.get(key) for key in everything} == everything
        self.db.assert_consistent()


class Emitted:
    def __init__(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.path = path
        self.rows = rows


@pytest.fixture
async def simulator() -> AsyncIterator[FaultySimulator]:
    """A simulator with a row per hour."""
    async with FaultySimulator(interval_seconds=None, cadence_seconds=3600, record_limit=1000) as simulator:
        yield simulator


@pytest.fixture
def make_backfill(simulator: FaultySimulator, fork_server: ForkServer, tmp_path: Path) -> Callable[[str], Backfill]:
    return lambda database_url: Backfill(fork_server, simulator, database_url, tmp_path)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For tests that do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


async def test_killed_backfill_resumes(
    make_backfill: Callable[[str], Backfill], simulator: FaultySimulator, fork_server: ForkServer, database_url: str
) -> None:
    backfill, pick = make_backfill(database_url), random.Random(3)
    simulator.rest_fault = Fault(delay_seconds=0.05)
    for number in range(KILLS):
        async with backfill.command() as command:
            await until(lambda: len(simulator.rest_requests) > 2 * number)  # noqa: B023
            await asyncio.sleep(pick.uniform(0, 0.2))
            command.kill()
    assert backfill.db.column(STATE) == ["open"]
    async with backfill.daemon() as daemon:  # which resumes the open repair
        await daemon.wait_until_live()
        await until(lambda: backfill.db.column(STATE) == ["done"])
        assert await daemon.terminate() == 0
    await assert_balances(daemon, fork_server)
    assert REQUESTS <= len(simulator.rest_requests) <= REQUESTS + KILLS
    assert backfill.db.scalar("SELECT new_rows FROM repairs WHERE kind = 'manual'") == REQUESTS * 7 * 24
    backfill.assert_complete()


async def test_daemon_runs_backfill_and_repeating_sends_no_request(
    make_backfill: Callable[[str], Backfill], simulator: FaultySimulator, sqlite_url: str
) -> None:
    backfill = make_backfill(sqlite_url)
    async with backfill.daemon() as daemon:
        await daemon.wait_until_live()
        for _ in range(2):
            async with backfill.command() as command:
                assert await command.wait_for_exit() == 0, command.stderr
                (repair,) = json.loads(command.stdout)
                assert (repair["state"], repair["new_rows"]) == ("done", REQUESTS * 7 * 24)
                assert f"{REQUESTS} requests, 0:02:40 to 0:10:00" in command.stderr
        assert await daemon.terminate() == 0
    assert len(simulator.rest_requests) == REQUESTS
    backfill.assert_complete()


async def test_failed_or_interrupted_backfill_resumes_without_daemon(
    make_backfill: Callable[[str], Backfill], simulator: FaultySimulator, sqlite_url: str
) -> None:
    backfill = make_backfill(sqlite_url)
    async with backfill.command(INGESTOR_PROVIDER__API_KEY="wrong-key-12345") as command:
        assert await command.wait_for_exit() == 69
        (repair,) = json.loads(command.stdout)
        assert (repair["state"], "HTTP 401" in repair["error"]) == ("failed", True)
        assert repair["error"].endswith("the API key is not accepted; check provider.api_key_file")
        assert "wrong-key" not in command.stdout + command.stderr
    simulator.rest_requests.clear()
    simulator.rest_fault = Fault(delay_seconds=0.1)
    async with backfill.command() as command:
        await until(lambda: len(simulator.rest_requests) > 3)
        os.kill(command.pid, signal.SIGINT)
        assert await command.wait_for_exit() == 130
        assert command.stderr.endswith("interrupted; a running daemon continues, else repeat the command\n")
        assert "Traceback" not in command.stderr
    simulator.rest_fault = None
    async with backfill.command() as command:
        assert await command.wait_for_exit() == 0
    assert len(simulator.rest_requests) <= REQUESTS + 1
    backfill.assert_complete()


async def test_backfill_without_daemon_ignores_other_repairs(
    make_backfill: Callable[[str], Backfill], simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    backfill = make_backfill(sqlite_url)
    simulator.rest_fault = Fault(delay_seconds=0.2)
    async with backfill.command() as command:
        await until(lambda: simulator.rest_requests)
        command.kill()
    simulator.rest_fault = None
    with closing(sqlite3.connect(tmp_path / "ingestor.db")) as database, database:
        columns = "subscription_id, from_ts, to_ts, kind, state, created_at"
        database.executemany(
            f"INSERT INTO repairs ({columns}) VALUES (1, ?, ?, 'snapshot', 'open', ?)",
            [[f"2026-01-01 00:{minute:02}:{second:02}" for second in (0, 1, 2)] for minute in range(60)]
            + [[f"2026-01-01 01:{minute:02}:{second:02}" for second in (0, 1, 2)] for minute in range(60)],
        )
    async with backfill.command() as command:
        assert await command.wait_for_exit() == 0
    backfill.assert_complete()


async def test_backfill_up_to_today_ends_although_it_is_not_proven(
    make_backfill: Callable[[str], Backfill], simulator: FaultySimulator, sqlite_url: str
) -> None:
    backfill = make_backfill(sqlite_url)
    for repeated in range(2):
        async with backfill.command(end=MIDNIGHT) as command:
            assert await command.wait_for_exit() == 69
            (repair,) = json.loads(command.stdout)
            assert (repair["state"], repair["error"]) == ("open", NO_LATER_ROW)
            assert command.stderr.count("a running daemon retries, else repeat the command tomorrow") == 1
        assert len(simulator.rest_requests) == REQUESTS + 1 + repeated  # only the last week is requested again
    backfill.assert_complete()
