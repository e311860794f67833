"""`ingestor status` in a process: once and with --watch, with and without a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

from .conftest import SharedDaemon
from .test_cli_start import run_cli
from .test_cli_tail import quiet_database

RATES = r"rate: [1-9][0-9.]* frames/s, [0-9.]+ rows/s"


def test_status_watch_prints_a_block_with_rates_each_second(shared_daemon: SharedDaemon) -> None:
    process = subprocess.Popen(
        shared_daemon.command_line("status", "--watch"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    output = ""  # up to the first rate above 0: while the machine stands still, it is 0
    while not re.search(RATES, output) and (line := process.stdout.readline()):
        output += line.decode()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")
    first, *_, last = output.split("\n\n")
    assert "reported by the daemon" in first and "rate" not in first
    assert re.search(RATES, last)
    assert "  3 subscriptions live" in last


UNTIL_A_RATE = """awk '{ print } /frames_per_second": *[1-9]/ { exit }'"""


def test_status_watch_json_prints_lines_until_pipe_closes(shared_daemon: SharedDaemon) -> None:
    command = " ".join(map(str, shared_daemon.command_line("status", "--watch", "--output", "json")))
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | {UNTIL_A_RATE}"], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    first, *_, last = map(json.loads, result.stdout.splitlines())
    assert first["source"] == "daemon" and first["rates"] == {}
    assert last["rates"]["frames_per_second"] > 0


def test_status_watch_refreshes_in_place_on_a_terminal(shared_daemon: SharedDaemon) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        shared_daemon.command_line("status", "--watch"), stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen = b""
    while b"rows/s" not in seen:
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while True:
            seen += os.read(ours, 4096)
    except OSError:  # a pty raises this when the other side is closed
        pass
    os.close(ours)
    assert process.wait(20) == 0
    assert b"\x1b[1A" in seen  # cursor up, to overwrite
    assert b"Traceback" not in seen
    assert seen.rstrip().endswith(b"\x1b[?25h")  # the cursor is visible again


def test_status_asks_the_daemon_despite_invalid_config(shared_daemon: SharedDaemon, tmp_path: Path) -> None:
    config = shared_daemon.daemon.folder / "broken.yaml"
    config.write_text(shared_daemon.config.read_text() + "\n]")
    seen = run_cli("status", "--config", str(config))
    config.unlink()
    assert (seen.returncode, seen.stderr) == (0, "")
    first, *_, last = seen.stdout.splitlines()
    assert "running since" in first
    assert last.startswith(f"  config: {config}:")
    alone = tmp_path / "broken.yaml"
    alone.write_text("spool: [a, b]\n]")
    no_daemon = run_cli("status", "--config", str(alone))
    assert (no_daemon.returncode, no_daemon.stdout) == (78, "")
    assert no_daemon.stderr.startswith(f"{alone}:2:")


def test_status_waits_until_the_daemon_is_ready(shared_daemon: SharedDaemon) -> None:
    done = subprocess.run(shared_daemon.command_line("status", "--wait-ready", "30"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "running since" in done.stdout


def test_status_without_daemon_reads_the_database(tmp_path: Path) -> None:
    config = quiet_database(tmp_path)
    text = run_cli("status", "--config", str(config), "--wait-ready", "0.1")
    assert (text.returncode, text.stderr) == (3, "not ready within 0.1 s\n")
    assert text.stdout.startswith("no running daemon could be reached; reported from the database\n")
    data = json.loads(run_cli("status", "--config", str(config), "--output", "json").stdout)
    assert data["source"] == "database"
    assert data["feeds"][0]["ts"] == "2024-03-10T10:00:00+00:00"
