"""How a daemon ends, and how the next one, or a command without a daemon, continues."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import CommandProcess, DaemonProcess, until, write_config

CROWD = "/real-time/crowd-sentiment"


def config_of(folder: Path, simulator: FaultySimulator, database_url: str, tickers: list[str], **more: Any) -> Path:
    return write_config(folder, url=simulator.url, database_url=database_url, subscriptions={CROWD: tickers}, **more)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


async def test_offline_retry_after_kill_still_records_crash(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, simulator, sqlite_url, ["AAPL"])
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await simulator.emit_raw(CROWD, '[{"ticker": "X"}]')
        await until(lambda: daemon.status["dead_letters"]["decode"] == 1)
        daemon.kill()
        async with CommandProcess("dead-letters", "retry", "--config", config, folder=tmp_path) as retry:
            assert await retry.wait_for_exit() == 0
            assert retry.stdout.startswith("retrying 1 dead letters")
        assert daemon.db.states("AAPL") == ["pending", "live", "crashed"]
        daemon.start()
        await daemon.wait_until_live()
        assert await daemon.terminate() == 0
    assert daemon.db.states("AAPL") == ["pending", "live", "crashed", "pending", "live", "stopped"]
    daemon.db.assert_consistent()


async def test_ticker_removed_after_kill_has_no_growing_gap(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, simulator, sqlite_url, ["AAPL", "TSLA"])
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(
            lambda: daemon.db.states("TSLA") == ["pending", "live"]
        )  # facts that were not synced are lost with the kill
        daemon.kill()
    config = config_of(tmp_path, simulator, sqlite_url, ["AAPL"])
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        assert await daemon.terminate() == 0
    assert daemon.db.states("TSLA") == ["pending", "live", "crashed", "stopped"]


@pytest.mark.postgres
async def test_second_signal_ends_daemon_despite_hanging_statement(
    simulator: FaultySimulator, postgres_url: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, simulator, postgres_url, ["AAPL"])
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        with daemon.db.write_locked():
            held = daemon.status["database"]["position"]
            await until(lambda: daemon.status["spool"]["durable_seq"] > held + 3)
            daemon.send_sigterm()
            await until(lambda: "daemon stopped" in daemon.stderr)
            began = time.monotonic()
            daemon.send_sigterm()
            assert await daemon.wait_for_exit() == 0
            assert time.monotonic() - began < 7  # without it, the daemon tries to write for nine seconds
        daemon.start()
        await daemon.wait_until_live()
        assert await daemon.terminate() == 0
    daemon.db.assert_consistent()


async def test_spool_that_cannot_be_created_is_explained(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    (tmp_path / "spool").write_text("a file")
    config = config_of(tmp_path, simulator, sqlite_url, ["AAPL"])
    async with DaemonProcess(config, simulator.api_key) as daemon:
        assert await daemon.wait_for_exit() == 74
        assert "File exists; set spool.path to a folder that can be created" in daemon.stderr
        assert "Traceback" not in daemon.stderr
