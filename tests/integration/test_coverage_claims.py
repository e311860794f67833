"""What coverage claims while a line is dead, after a kill, and when the clock is set: nothing that was not received."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestor.daemon import heartbeat
from tests.support.faulty_simulator import FaultySimulator

from ..support.clock_step import SteppedClock
from ..support.daemon import InProcessDaemon, until, write_config
from ..support.db_reader import DbReader

CROWD = "/real-time/crowd-sentiment"
HOUR, YEAR = 3600.0, 365 * 86400.0
MOMENT = timedelta(milliseconds=50)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "CLOCK_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)


def config_in(folder: Path, url: str) -> Path:
    database_url = f"sqlite:///{folder / 'ingestor.db'}"  # does not depend on the kind of database
    return write_config(folder, url=url, database_url=database_url, subscriptions={CROWD: ["AAPL"]})


def copy_as_killed(folder: Path, copy: Path) -> None:
    """Copy spool and database of a running daemon, as they would be after kill -9."""
    copy.mkdir()
    with (
        closing(sqlite3.connect(folder / "ingestor.db")) as running,
        closing(sqlite3.connect(copy / "ingestor.db")) as copied,
    ):
        running.backup(copied)
    shutil.copytree(folder / "spool", copy / "spool", ignore=shutil.ignore_patterns("*-shm", "ballast", "*.sock"))


async def test_half_open_line_is_claimed_up_to_its_last_byte_also_after_a_kill(
    simulator: FaultySimulator, tcp_proxy: Callable[[str], Any], tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    proxy = await tcp_proxy(simulator.url)
    async with InProcessDaemon(config_in(tmp_path / "first", proxy.url), simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: heartbeat_at(daemon.db) and daemon.db.column("SELECT received_at FROM samples"))
        proxy.half_open = True
        await asyncio.sleep(0.1)  # until what was on its way has arrived
        frames = daemon.status.connections[0].frames
        await until(lambda: daemon.db.scalar("SELECT count(*) FROM payloads") == frames)
        last_byte = daemon.db.scalar("SELECT MAX(received_at) AS at_at FROM samples")
        await until(lambda: heartbeat_at(daemon.db) > last_byte + 6 * MOMENT)
        assert claimed_until(daemon.db) <= last_byte + MOMENT
        copy_as_killed(tmp_path / "first", tmp_path / "killed")
        proxy.half_open = False
    async with InProcessDaemon(config_in(tmp_path / "killed", simulator.url), simulator.api_key) as daemon:
        await daemon.wait_until_live()
    (gap,) = (gap for gap in daemon.db.gaps("AAPL") if "crashed" in gap["states"])
    assert abs(gap["from_at"] - last_byte) <= MOMENT


@pytest.mark.parametrize("step", [-HOUR, YEAR], ids=["back", "ahead"])
async def test_downtime_in_which_the_clock_was_set_is_a_gap(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    clock = SteppedClock(monkeypatch)
    config = config_in(tmp_path, simulator.url)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
    clock.suspend(20)
    clock.step(step)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
    (gap,) = (gap for gap in daemon.db.gaps("AAPL") if "stopped" in gap["states"])
    assert 20 <= (gap["to_at"] - gap["from_at"]).total_seconds() - max(step, 0.0) < 60


async def test_outage_after_the_clock_was_set_back_is_a_gap(
    simulator: FaultySimulator, tcp_proxy: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SteppedClock(monkeypatch)
    proxy = await tcp_proxy(simulator.url)
    async with InProcessDaemon(config_in(tmp_path, proxy.url), simulator.api_key) as daemon:
        await daemon.wait_until_live()
        clock.step(-HOUR)
        await until(lambda: daemon.db.states("AAPL")[-3:] == ["silent", "silent", "live"])
        proxy.refusing = True
        proxy.cut()
        await until(lambda: daemon.states == ["disconnected"])
        clock.suspend(3)  # less than what counts as an interruption
        proxy.refusing = False
        await daemon.wait_until_live()
        await until(lambda: daemon.db.states("AAPL")[-1] == "live")
    gap = max(daemon.db.gaps("AAPL"), key=lambda gap: gap["to_at"] - gap["from_at"])
    assert "disconnected" in gap["states"]
    assert gap["to_at"] - gap["from_at"] >= timedelta(seconds=3)


async def test_time_is_tracked_after_a_clock_that_was_a_year_ahead_is_set_right(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SteppedClock(monkeypatch)
    async with InProcessDaemon(config_in(tmp_path, simulator.url), simulator.api_key) as daemon:
        await daemon.wait_until_live()
        clock.step(YEAR)
        await until(lambda: daemon.db.states("AAPL")[-3:] == ["silent", "silent", "live"])
        await until(lambda: claimed_until(daemon.db).year > 2026)
        clock.step(-YEAR)
        await until(lambda: daemon.db.states("AAPL")[4:] == ["live", "silent", "silent", "live"])
        restarted_at = daemon.db.column("SELECT at AS at_at FROM events WHERE kind = 'clock_restarted' ORDER BY seq")[
            -1
        ]
        await until(lambda: restarted_at + 4 * MOMENT < heartbeat_at(daemon.db) < restarted_at + 400 * MOMENT)
        await until(lambda: abs(claimed_until(daemon.db) - heartbeat_at(daemon.db)) < 4 * MOMENT)
        assert daemon.db.rows("SELECT * FROM gaps WHERE seconds > 5") == []
    assert json.loads(daemon.db.scalar("SELECT detail FROM events WHERE kind = 'clock_stepped' LIMIT 1"))["seconds"] > 0


def heartbeat_at(db: DbReader) -> Any:
    return db.scalar("SELECT heartbeat_at FROM instances")


def claimed_until(db: DbReader) -> Any:
    return db.scalar("SELECT MAX(to_at) AS to_at FROM covered")


async def test_heartbeat_of_a_clock_that_is_set_back_claims_nothing_that_is_to_come(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", HOUR)
    clock = SteppedClock(monkeypatch)
    async with InProcessDaemon(config_in(tmp_path, simulator.url), simulator.api_key) as daemon:
        await daemon.wait_until_live()
        before = await until(lambda: heartbeat_at(daemon.db))
        clock.step(-HOUR)
        await until(lambda: before - timedelta(hours=2) < heartbeat_at(daemon.db) < before - timedelta(minutes=59))
