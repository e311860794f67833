"""The demo as a process: its folder is named in the end, and removed unless it is kept."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from pathlib import Path

import pytest

from ..support.daemon import CommandProcess, until


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_demo_removes_its_folder_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    async with CommandProcess("demo", folder=tmp_path, TMPDIR=str(tmp_path)) as demo:
        await until(lambda: list(tmp_path.glob("ingestor-demo-*/ingestor.db")))
        (folder,) = tmp_path.glob("ingestor-demo-*")
        os.kill(demo.pid, number)
        assert await demo.wait_for_exit() == 0
    assert f"The demo's folder {folder} was removed." in demo.stdout
    assert not folder.exists()


async def test_demo_keeps_its_folder_and_names_queries_that_work(tmp_path: Path) -> None:
    async with CommandProcess("demo", "--keep", "--seconds", "2", folder=tmp_path, TMPDIR=str(tmp_path)) as demo:
        assert await demo.wait_for_exit() == 0
    (folder,) = tmp_path.glob("ingestor-demo-*")
    assert f"The demo's folder is {folder}." in demo.stdout
    database, query = re.findall(r'sqlite3 (\S+) "(.*)"', demo.stdout)[0]
    with sqlite3.connect(database) as connection:
        assert connection.execute(query).fetchall()
    connection.close()
