"""`ingestor export` in a process, while the daemon writes."""

from __future__ import annotations

import csv
import os
import pty
import re
import subprocess
from pathlib import Path

from .conftest import SharedDaemon


def test_export_to_file_while_daemon_writes_shows_progress(shared_daemon: SharedDaemon, tmp_path: Path) -> None:
    query = "SELECT ticker, ts, value FROM observations WHERE feed = 'crowd-sentiment'"
    before = {(row["ticker"], row["ts"].isoformat(), str(row["value"])) for row in shared_daemon.daemon.db.rows(query)}
    file = tmp_path / "x.csv"
    screen, terminal = pty.openpty()
    command = shared_daemon.command_line("export", "--feed", "crowd-sentiment", "-o", file)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=60)
    os.close(terminal)
    shown = os.read(screen, 100_000).decode()
    os.close(screen)
    with file.open(newline="") as text:
        rows = [(row["ticker"], row["ts"], row["value"]) for row in csv.DictReader(text)]
    assert (done.returncode, done.stdout) == (0, f"{file}: {len(rows):,} rows\n")
    assert len(set(rows)) == len(rows)
    assert before <= set(rows)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "2/2 series" in plain
