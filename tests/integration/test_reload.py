"""Reloads that coincide with the start, the shutdown or another reload."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ingestor.config import load
from ingestor.daemon import control_socket, reload
from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import InProcessDaemon, until, write_config

CROWD = "/real-time/crowd-sentiment"


async def test_reload_during_shutdown_is_rejected(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGESTOR_PROVIDER__API_KEY", simulator.api_key)
    database = tmp_path / "ingestor.db"
    wanted = {CROWD: ["AAPL"]}
    file = write_config(tmp_path, url=simulator.url, database_url=f"sqlite:///{database}", subscriptions=wanted)
    extended = file.read_text().replace('"AAPL"', '"AAPL", "ON"')
    async with InProcessDaemon(file, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        file.unlink()
        os.mkfifo(file)  # reading it blocks until it is written
        request = asyncio.create_task(asyncio.to_thread(control_socket.send_request, tmp_path / "spool", "reload"))
        pipe = await asyncio.to_thread(file.open, "w")
        with closing(sqlite3.connect(database, isolation_level=None)) as other, pipe:
            other.execute("BEGIN IMMEDIATE")  # so that the daemon has to wait for the database
            stopping = asyncio.create_task(daemon.stop())
            await until(lambda: daemon.states == ["stopped"])
            pipe.write(extended)
            pipe.close()
            with pytest.raises(control_socket.ControlError, match="is shutting down"):
                await asyncio.wait_for(request, 5)
        await stopping
        assert daemon.db.states("AAPL") == ["pending", "live", "stopped"]
        assert daemon.db.states("ON") == []


async def test_systemd_sees_end_of_last_overlapping_reload(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGESTOR_PROVIDER__API_KEY", simulator.api_key)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    file = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions={CROWD: ["AAPL"]})
    text = file.read_text()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        messages: list[str] = []

        def count(wanted: str) -> int:
            try:
                messages.append(manager.recv(4096).decode().split("\n")[0])
            except BlockingIOError:
                pass
            return messages.count(wanted)

        async with InProcessDaemon(file, simulator.api_key) as daemon:
            await daemon.wait_until_live()
            file.unlink()
            os.mkfifo(file)
            first = asyncio.create_task(asyncio.to_thread(control_socket.send_request, tmp_path / "spool", "reload"))
            with await asyncio.to_thread(file.open, "w") as pipe:
                file.unlink()
                file.write_text(text)
                second = asyncio.create_task(
                    asyncio.to_thread(control_socket.send_request, tmp_path / "spool", "reload")
                )
                await until(lambda: count("RELOADING=1") == 2)
                pipe.write(text)
            await asyncio.gather(first, second)
        await until(lambda: count("STOPPING=1"))
    assert messages == ["READY=1", "RELOADING=1", "RELOADING=1", "READY=1", "STOPPING=1"]


async def test_change_during_startup_is_reloaded(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGESTOR_PROVIDER__API_KEY", simulator.api_key)
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    file = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions={CROWD: ["AAPL"]})
    file.write_text(json.dumps(json.loads(file.read_text()) | {"watch": "true"}))
    starting = InProcessDaemon(file, simulator.api_key)
    file.write_text(file.read_text().replace('"AAPL"', '"AAPL", "ON"'))
    async with starting as daemon:
        await until(lambda: len(daemon.states) == 2)


async def test_file_of_tickers_is_watched_and_its_errors_keep_the_old_config(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("INGESTOR_PROVIDER__API_KEY", simulator.api_key)
    monkeypatch.setattr(reload, "WATCH_SECONDS", 0.05)
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    file = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions={CROWD: ["AAPL"]})
    document = json.loads(file.read_text()) | {"watch": "true"}
    listed = {"subscriptions": [{"path": CROWD, "tickers_file": "t.txt"}]}
    tickers = tmp_path / "t.txt"
    file.write_text(json.dumps(document))
    async with InProcessDaemon(file, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        file.write_text(json.dumps(document | listed))  # the file does not exist yet
        await until(lambda: "t.txt does not exist; create it, or correct the path" in caplog.text)
        tickers.write_text("AAPL\nON # and more\n")
        await until(lambda: len(daemon.states) == 2)
        await daemon.wait_until_live()
        sha256 = daemon.status.config_sha256
        tickers.write_text("AAPL\nON\nA B\n")
        await until(lambda: f"{tickers}:3:1: a ticker must not contain spaces" in caplog.text)
        assert (len(daemon.states), daemon.status.config_sha256) == (2, sha256)
        tickers.write_text("ON\n@x\n")
        await until(lambda: f'config: {tickers}:2:1: "@x" is no ticker' in caplog.text)
        assert daemon.status.config_sha256 == load(file).sha256 != sha256
        assert max(len(record.getMessage()) for record in caplog.records) < 500
