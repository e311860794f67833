"""The demo as a process: its folder is named in the end, and removed unless it is kept."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from ..support.daemon import COMMAND, CommandProcess, until


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


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 20)])
def test_demo_shows_whole_values_in_a_small_terminal(tmp_path: Path, columns: int, lines: int) -> None:
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "TMPDIR": str(tmp_path)}
    command = [COMMAND, "demo", "--seconds", "2"]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment):
        os.close(terminal)
        output = read_all(screen)
    assert re.search(r"AAPL +[+-]\d\.\d{4}  [▁-█]{4,} +\d+  \d+\.\d s", output)
    assert "…" not in output


def read_all(descriptor: int) -> str:
    """Return what a terminal was sent, without its control sequences."""
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:  # the other end is closed
        os.close(descriptor)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(parts).decode(errors="replace"))
