"""Reloading the configuration in a running daemon: what changes, and what must not."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ingestor.daemon import control_socket
from tests.support.faulty_simulator import FaultySimulator

from ..support import expected_rows
from ..support.daemon import until, write_config
from ..support.fork_server import ForkedCommand, ForkedDaemon, ForkServer

CROWD = "/real-time/crowd-sentiment"
VOLUME = "/real-time/tweet-volume"
TICKERS = [f"T{number}" for number in range(20)]
EVENTS_PER_SECOND = 1_000


@pytest.fixture
async def busy_simulator(make_simulator: Callable[..., Any]) -> FaultySimulator:
    """A simulator that sends a thousand events per second, with two rows each."""
    interval_seconds = len(TICKERS) / EVENTS_PER_SECOND
    simulator: FaultySimulator = await make_simulator(interval_seconds=interval_seconds, window_seconds=120)
    return simulator


@asynccontextmanager
async def running(
    fork_server: ForkServer, folder: Path, simulator: FaultySimulator, tickers: list[str], **environment: str
) -> AsyncIterator[ForkedDaemon]:
    config = write_config(
        folder,
        url=simulator.url,
        database_url=f"sqlite:///{folder / 'ingestor.db'}",
        subscriptions={CROWD: tickers},
    )
    daemon = ForkedDaemon(fork_server, config, simulator.api_key, **environment)
    daemon.start()
    try:
        await daemon.wait_until_live()
        yield daemon
    finally:
        daemon.kill()


def edit_config(daemon: ForkedDaemon, change: Callable[[dict[str, Any]], object]) -> None:
    """Replace the configuration file, as an editor does."""
    document = json.loads(daemon.config_file.read_text())
    change(document)
    new = daemon.config_file.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1))
    new.replace(daemon.config_file)


def set_tickers(tickers: list[str]) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["subscriptions"][0].update(tickers=tickers)


async def run_reload(fork_server: ForkServer, daemon: ForkedDaemon) -> tuple[int, dict[str, Any], str]:
    """Run `ingestor reload` and return its exit code, its result and its errors."""
    options = ("--output", "json", "--config", daemon.config_file)
    key = {"INGESTOR_PROVIDER__API_KEY": "any"}
    folder = daemon.folder / f"reload-{time.monotonic_ns()}"
    folder.mkdir()
    command = ForkedCommand(fork_server, "reload", *options, folder=folder, **key)
    command.start()
    code = await command.wait_for_exit()
    return code, json.loads(command.stdout or "{}"), command.stderr


# Changed subscriptions.


@pytest.mark.parametrize("how", ["signal", "command", "watch"])
async def test_reload_changes_tickers_on_the_live_connection(
    fork_server: ForkServer, busy_simulator: FaultySimulator, tmp_path: Path, how: str
) -> None:
    environment = {"INGESTOR_WATCH": "true"} if how == "watch" else {}
    async with running(fork_server, tmp_path, busy_simulator, TICKERS, **environment) as daemon:
        connection_id, handshakes = daemon.status["connections"][0]["id"], busy_simulator.handshakes
        edit_config(daemon, set_tickers([*TICKERS[1:], "TSLA"]))
        requested_at = time.monotonic()
        if how == "signal":
            os.kill(daemon.pid, signal.SIGHUP)
        elif how == "command":
            code, result, _ = await run_reload(fork_server, daemon)
            assert (code, result) == (0, {"added": 1, "removed": 1, "needs_restart": []})
        first_row = "SELECT count(*) FROM observations WHERE ticker = 'TSLA'"
        await until(lambda: daemon.db.scalar(first_row))
        duration_seconds = time.monotonic() - requested_at
        await until(
            lambda: {request.params["ticker"] for request in busy_simulator.subscriptions()} == {*TICKERS[1:], "TSLA"}
        )
        await daemon.wait_until_live()
        assert (daemon.status["connections"][0]["id"], busy_simulator.handshakes) == (connection_id, handshakes)
        busy_simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(busy_simulator.emitted))
        assert await daemon.terminate() == 0
    print(f"{how}: the first row of the new ticker after {duration_seconds:.2f} s")
    assert duration_seconds < 6
    for ticker in ("T0", "T1", "TSLA"):
        assert daemon.db.states(ticker) == ["pending", "live", "stopped"]
    daemon.db.assert_consistent()


async def test_reload_opens_new_path_and_closes_removed_one(
    fork_server: ForkServer, simulator: FaultySimulator, tmp_path: Path
) -> None:
    async with running(fork_server, tmp_path, simulator, ["AAPL"]) as daemon:
        edit_config(daemon, lambda document: document.update(subscriptions=[{"path": VOLUME, "tickers": ["ON"]}]))
        os.kill(daemon.pid, signal.SIGHUP)
        await until(lambda: [connection["path"] for connection in daemon.status["connections"]] == [VOLUME])
        await daemon.wait_until_live()
        await until(lambda: len(simulator.connections) == 1)
        assert await daemon.terminate() == 0
    assert daemon.db.states("AAPL") == ["pending", "live", "stopped"]
    daemon.db.assert_consistent()


async def test_sighup_during_startup_is_deferred(
    fork_server: ForkServer, simulator: FaultySimulator, tmp_path: Path
) -> None:
    subscriptions, database_url = {CROWD: ["AAPL"]}, f"sqlite:///{tmp_path / 'ingestor.db'}"
    file = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=subscriptions)
    daemon, text = ForkedDaemon(fork_server, file, simulator.api_key), file.read_text()
    file.unlink()
    os.mkfifo(file)  # reading it blocks until the test writes
    daemon.start()
    try:
        with await asyncio.to_thread(file.open, "w") as pipe:
            os.kill(daemon.pid, signal.SIGHUP)
            file.unlink()
            file.write_text(text.replace('"AAPL"', '"AAPL", "ON"'))
            pipe.write(text)
        await until(lambda: len(daemon.status.get("subscriptions", ())) == 2)
        await daemon.wait_until_live()
        assert await daemon.terminate() == 0
    finally:
        daemon.kill()
    daemon.db.assert_consistent()


# Invalid files.


async def test_invalid_file_is_rejected_until_it_is_fixed(
    fork_server: ForkServer, simulator: FaultySimulator, tmp_path: Path
) -> None:
    async with running(fork_server, tmp_path, simulator, ["AAPL"]) as daemon:
        good = daemon.config_file.read_text()
        daemon.config_file.write_text(good.replace('"tickers"', '"tickerz"'))
        code, _, error = await run_reload(fork_server, daemon)
        # The command reads the file before it asks the daemon.
        assert (code, "did you mean" in error) == (78, True)
        os.kill(daemon.pid, signal.SIGHUP)
        await until(lambda: "ingestor_config_last_reload_successful 0.0" in daemon.get("/metrics")[1])
        await until(lambda: f"{daemon.config_file}:" in daemon.stderr)  # log lines are written by another thread
        assert daemon.status["config_reload_successful"] is False
        assert "did you mean" in daemon.status["last_errors"][-1]["text"]
        await daemon.wait_until_live()
        daemon.config_file.write_text(good)
        assert await run_reload(fork_server, daemon) == (0, {"added": 0, "removed": 0, "needs_restart": []}, "")
        assert "ingestor_config_last_reload_successful 1.0" in daemon.get("/metrics")[1]
        assert await daemon.terminate() == 0
    kinds = daemon.db.column("SELECT kind FROM events WHERE kind LIKE 'config%' ORDER BY seq")
    assert kinds[-1] == "config_reloaded"
    assert "config_rejected" in kinds[:-1]
    assert daemon.db.states("AAPL") == ["pending", "live", "stopped"]


async def test_changes_that_need_a_restart_are_reported_each_time(
    fork_server: ForkServer, simulator: FaultySimulator, tmp_path: Path
) -> None:
    async with running(fork_server, tmp_path, simulator, ["AAPL"]) as daemon:
        edit_config(daemon, lambda document: document["database"].update(batch={"max_rows": 10}))
        for _ in range(2):
            _, result, _ = await run_reload(fork_server, daemon)
            assert result["needs_restart"] == ["database.batch.max_rows"]


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_corrupted_file_does_not_stop_the_daemon(
    fork_server: ForkServer, simulator: FaultySimulator, tmp_path: Path, count: int
) -> None:
    dice = random.Random(count)
    async with running(fork_server, tmp_path, simulator, ["AAPL", "ON"]) as daemon:
        good = daemon.config_file.read_bytes()
        pid, accepted = daemon.pid, 0
        for _ in range(count):
            daemon.config_file.write_bytes(corrupt(good, dice))
            try:
                await asyncio.to_thread(control_socket.send_request, tmp_path / "spool", "reload")
                accepted += 1
            except control_socket.ControlError:
                pass  # rejected
        daemon.config_file.write_bytes(good)
        await asyncio.to_thread(control_socket.send_request, tmp_path / "spool", "reload")
        await daemon.wait_until_live()
        assert daemon.pid == pid
        assert await daemon.terminate() == 0
    print(f"{count} files, {accepted} of them accepted")
    assert 0 < accepted < count
    daemon.db.assert_consistent()


def corrupt(text: bytes, dice: random.Random) -> bytes:
    """Delete, duplicate, swap or replace some of the bytes."""
    changed = bytearray(text)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(changed))
        match dice.randrange(4):
            case 0:
                del changed[at : at + dice.randrange(1, 40)]
            case 1:
                changed[at:at] = changed[at : at + dice.randrange(1, 40)]
            case 2:
                changed[at] = dice.randrange(256)
            case _:
                changed[at : at + 2] = changed[at : at + 2][::-1]
    return bytes(changed)
