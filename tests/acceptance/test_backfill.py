"""``ingestor backfill``: by the daemon or by itself, killed, interrupted, repeated; the rows are there, once."""

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

from tests.support.faulty_simulator import Fault, FaultySimulator

from ..support import expected_rows
from ..support.daemon import until, write_config
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedCommand, ForkedDaemon, ForkServer
from ..support.reconciliation import assert_balances

CROWD = "/real-time/crowd-sentiment"
QUESTIONS = 8
WEEK = timedelta(days=7)
KILLS = 3
STATE = "SELECT state FROM repairs WHERE kind = 'manual'"
IN_A_HURRY = json.dumps(
    {"ingestor.provider.rest_api.SPACING_SECONDS": 0.02, "ingestor.daemon.watchers.FIRST_REPAIR_SECONDS": 0.2}
)
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
START = MIDNIGHT - QUESTIONS * WEEK


class Asked:
    """The command about the same weeks every time, and what there is to be had of them."""

    def __init__(self, fork_server: ForkServer, simulator: FaultySimulator, database_url: str, folder: Path) -> None:
        self.simulator = simulator
        self.config = write_config(
            folder, url=simulator.url, database_url=database_url, subscriptions={CROWD: ["AAPL"]}
        )
        self.db = DbReader(database_url)
        self._fork_server = fork_server
        self._folder = folder

    def command(self, **environment: str) -> ForkedCommand:
        since, until_ = (f"{at:%Y-%m-%d}" for at in (START, MIDNIGHT))
        arguments = ("backfill", "--ticker", "AAPL", "--from", since, "--to", until_, "--output", "json")
        key = {"INGESTOR_PROVIDER__API_KEY": self.simulator.api_key, "TEST_CONSTANTS": IN_A_HURRY}
        return ForkedCommand(
            self._fork_server, *arguments, "--config", self.config, folder=self._folder, **(key | environment)
        )

    def daemon(self) -> ForkedDaemon:
        return ForkedDaemon(self._fork_server, self.config, self.simulator.api_key, TEST_CONSTANTS=IN_A_HURRY)

    def assert_whole(self) -> None:
        """Everything that there was is there, and the books balance."""
        market = self.simulator.market
        first, last = (market.bucket(CROWD, at.timestamp()) for at in (START, MIDNIGHT))
        rows = market.rows(CROWD, {"ticker": "AAPL"}, first, last - 1, "numbers")
        held = self.db.current()
        everything = expected_rows.current([Emitted(CROWD, rows)])
        assert {key: held.get(key) for key in everything} == everything
        self.db.check()


class Emitted:
    def __init__(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.path = path
        self.rows = rows


@pytest.fixture
async def hours() -> AsyncIterator[FaultySimulator]:
    """A provider whose rows are an hour apart."""
    async with FaultySimulator(interval_seconds=None, cadence_seconds=3600, record_limit=1000) as simulator:
        yield simulator


@pytest.fixture
def asked(hours: FaultySimulator, fork_server: ForkServer, tmp_path: Path) -> Callable[[str], Asked]:
    return lambda database_url: Asked(fork_server, hours, database_url, tmp_path)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For what databases have no say in."""
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


async def test_killed_again_and_again_it_goes_on_where_it_was(
    asked: Callable[[str], Asked], hours: FaultySimulator, fork_server: ForkServer, database_url: str
) -> None:
    made, pick = asked(database_url), random.Random(3)
    hours.rest_fault = Fault(delay_seconds=0.05)
    for number in range(KILLS):
        async with made.command() as command:
            await until(lambda: len(hours.rest_requests) > 2 * number)  # noqa: B023
            await asyncio.sleep(pick.uniform(0, 0.2))
            command.kill()
    assert made.db.column(STATE) == ["open"]
    async with made.daemon() as daemon:  # which finds it open
        await daemon.live()
        await until(lambda: made.db.column(STATE) == ["done"])
        assert await daemon.terminate() == 0
    await assert_balances(daemon, fork_server)
    assert QUESTIONS < len(hours.rest_requests) <= QUESTIONS + KILLS
    assert made.db.one("SELECT new_rows FROM repairs WHERE kind = 'manual'") == QUESTIONS * 7 * 24
    made.assert_whole()


async def test_the_daemon_does_it_if_one_runs_and_doing_it_again_asks_for_nothing(
    asked: Callable[[str], Asked], hours: FaultySimulator, sqlite_url: str
) -> None:
    made = asked(sqlite_url)
    async with made.daemon() as daemon:
        await daemon.live()
        for _ in range(2):
            async with made.command() as command:
                assert await command.wait_for_exit() == 0, command.stderr
                (told,) = json.loads(command.stdout)
                assert (told["state"], told["new_rows"]) == ("done", QUESTIONS * 7 * 24)
                assert f"{QUESTIONS} requests, 0:02:40 to 0:10:00" in command.stderr
        assert await daemon.terminate() == 0
    assert len(hours.rest_requests) == QUESTIONS
    made.assert_whole()


async def test_without_a_daemon_what_was_refused_or_interrupted_goes_on_with_the_same_command(
    asked: Callable[[str], Asked], hours: FaultySimulator, sqlite_url: str
) -> None:
    made = asked(sqlite_url)
    async with made.command(INGESTOR_PROVIDER__API_KEY="wrong-key-12345") as command:
        assert await command.wait_for_exit() == 69
        (told,) = json.loads(command.stdout)
        assert (told["state"], "HTTP 401" in told["error"]) == ("failed", True)
        assert told["error"].endswith("the API key is not accepted; check provider.api_key_file")
        assert "wrong-key" not in command.stdout + command.stderr
    hours.rest_requests.clear()
    hours.rest_fault = Fault(delay_seconds=0.1)
    async with made.command() as command:
        await until(lambda: len(hours.rest_requests) > 3)
        os.kill(command.pid, signal.SIGINT)
        assert await command.wait_for_exit() == 130
        assert command.stderr.endswith("interrupted; a running daemon continues, else repeat the command\n")
        assert "Traceback" not in command.stderr
    hours.rest_fault = None
    async with made.command() as command:
        assert await command.wait_for_exit() == 0
    assert len(hours.rest_requests) <= QUESTIONS + 1
    made.assert_whole()


async def test_without_a_daemon_it_waits_for_nothing_that_a_daemon_has_left(
    asked: Callable[[str], Asked], hours: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    made = asked(sqlite_url)
    hours.rest_fault = Fault(delay_seconds=0.2)
    async with made.command() as command:
        await until(lambda: hours.rest_requests)
        command.kill()
    hours.rest_fault = None
    with closing(sqlite3.connect(tmp_path / "ingestor.db")) as database, database:
        columns = "subscription_id, from_ts, to_ts, kind, state, created_at"
        database.executemany(
            f"INSERT INTO repairs ({columns}) VALUES (1, ?, ?, 'snapshot', 'open', ?)",
            [[f"2026-01-01 00:{minute:02}:{second:02}.000000" for second in (0, 1, 2)] for minute in range(60)]
            + [[f"2026-01-01 01:{minute:02}:{second:02}.000000" for second in (0, 1, 2)] for minute in range(60)],
        )
    async with made.command() as command:
        assert await command.wait_for_exit() == 0
    made.assert_whole()
