"""`ingestor status` as it is typed: once, and again and again, with and without a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

from .conftest import Desk
from .test_cli_start import ingestor_
from .test_cli_tail import quiet_database


def test_watching_says_a_block_each_second_and_how_quickly_it_comes(desk: Desk) -> None:
    process = subprocess.Popen(desk.typed("status", "--watch"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    said = ""
    while "frames/s" not in said and (line := process.stdout.readline()):
        said += line.decode()
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (0, b"")
    first, second = said.split("\n\n")[:2]
    assert "reported by the daemon" in first and "rate" not in first
    assert re.search(r"rate: [1-9][0-9.]* frames/s, [0-9.]+ rows/s", second)
    assert "  3 subscriptions live" in second


def test_watching_for_programs_is_an_object_a_line_and_ends_with_its_reader(desk: Desk) -> None:
    command = " ".join(map(str, desk.typed("status", "--watch", "--output", "json")))
    said = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -2"], capture_output=True, text=True, timeout=20
    )
    assert (said.returncode, said.stderr) == (0, "")
    first, second = map(json.loads, said.stdout.splitlines())
    assert first["source"] == "daemon" and first["rates"] == {}
    assert second["rates"]["frames_per_second"] > 0


def test_on_a_terminal_it_is_shown_in_place(desk: Desk) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(desk.typed("status", "--watch"), stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while b"rows/s" not in seen:
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while True:
            seen += os.read(ours, 4096)
    except OSError:  # how a terminal says that the other side has gone
        pass
    os.close(ours)
    assert process.wait(20) == 0
    assert b"\x1b[1A" in seen  # back up, to write over what was there
    assert b"Traceback" not in seen
    assert seen.rstrip().endswith(b"\x1b[?25h")  # the cursor is there again


def test_a_daemon_is_asked_though_the_file_is_broken_and_what_is_wrong_there_stands_below(
    desk: Desk, tmp_path: Path
) -> None:
    config = desk.daemon.folder / "broken.yaml"
    config.write_text(desk.config.read_text() + "\n]")
    seen = ingestor_("status", "--config", str(config))
    config.unlink()
    assert (seen.returncode, seen.stderr) == (0, "")
    first, *_, last = seen.stdout.splitlines()
    assert "running since" in first
    assert last.startswith(f"  config: {config}:")
    alone = tmp_path / "broken.yaml"
    alone.write_text("spool: [a, b]\n]")
    nobody = ingestor_("status", "--config", str(alone))
    assert (nobody.returncode, nobody.stdout) == (78, "")
    assert nobody.stderr.startswith(f"{alone}:2:")


def test_without_a_daemon_the_database_is_asked_and_that_is_said(tmp_path: Path) -> None:
    config = quiet_database(tmp_path)
    text = ingestor_("status", "--config", str(config))
    assert text.stdout.startswith("no running daemon could be reached; reported from the database\n")
    data = json.loads(ingestor_("status", "--config", str(config), "--output", "json").stdout)
    assert data["source"] == "database"
    assert data["feeds"][0]["ts"] == "2024-03-10T10:00:00+00:00"
