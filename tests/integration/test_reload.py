"""A reload that comes at a time when it cannot be done."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ingestor import control
from ingestor.provider.simulator import Simulator

from ..support.daemon import Resident, until, write_config

CROWD = "/real-time/crowd-sentiment"


async def test_what_is_read_while_the_daemon_ends_is_left_to_the_next_start(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGESTOR_PROVIDER__API_KEY", simulator.api_key)
    database = tmp_path / "ingestor.db"
    wanted = {CROWD: ["AAPL"]}
    file = write_config(tmp_path, url=simulator.url, database_url=f"sqlite:///{database}", subscriptions=wanted)
    more = file.read_text().replace('"AAPL"', '"AAPL", "ON"')
    async with Resident(file, simulator.api_key) as daemon:
        await daemon.live()
        file.unlink()
        os.mkfifo(file)  # which is read for as long as nobody has written
        asking = asyncio.create_task(asyncio.to_thread(control.ask, tmp_path / "spool", "reload"))
        pipe = await asyncio.to_thread(file.open, "w")
        with closing(sqlite3.connect(database, isolation_level=None)) as other, pipe:
            other.execute("BEGIN IMMEDIATE")  # so the daemon has something to wait for
            stopping = asyncio.create_task(daemon.stop())
            await until(lambda: daemon.states == ["stopped"])
            pipe.write(more)
            pipe.close()
            with pytest.raises(control.ControlFailed, match="is stopping"):
                await asyncio.wait_for(asking, 5)
        await stopping
        assert daemon.books.states("AAPL") == ["pending", "live", "stopped"]
        assert daemon.books.states("ON") == []
