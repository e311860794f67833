"""`ingestor tail` in a process."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path

from ingestor.store import migrate
from ingestor.store.engine import make_engine

from ..integration.store.row_factory import Database
from ..support.daemon import COMMAND
from .conftest import SharedDaemon


def test_tail_follow_prints_every_value_once_until_ctrl_c(shared_daemon: SharedDaemon) -> None:
    process = subprocess.Popen(
        shared_daemon.command_line("tail", "-f", "-n", "3", "--output", "json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(12)]  # existing observations, and some seconds of new ones
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    seen = [json.loads(line) for line in lines + rest.splitlines()]
    values = [(row["seq"], row["ticker"], row["ts"], row["value"]) for row in seen]
    assert len(set(values)) == len(values)
    assert values[3:] == sorted(values[3:])
    # Every value stored for these entries was printed.
    first, last = seen[3]["seq"], seen[-1]["seq"]
    stored = shared_daemon.daemon.db.rows(f"SELECT seq, value FROM observations WHERE seq > {first} AND seq < {last}")
    assert {(row["seq"], row["value"]) for row in stored} <= {(row["seq"], row["value"]) for row in seen}


def test_tail_prints_one_ticker_as_text(shared_daemon: SharedDaemon) -> None:
    result = subprocess.run(
        shared_daemon.command_line("tail", "6E_F", "--limit", "2"), capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first < second
    assert "  6E_F      tweet-volume  volume " in first


def quiet_database(folder: Path) -> Path:
    """Write a configuration whose database has one value and no daemon."""
    engine = make_engine(f"sqlite:///{folder / 'ingestor.db'}")
    migrate.upgrade(engine)
    database = Database(engine)
    database.instance(1, "10:00", position=7)
    database.sample("crowd-sentiment", "crowd_sentiment", "ON", "10:00", 0.25, seq=7)
    config = folder / "config.yaml"
    config.write_text("subscriptions: [{path: crowd-sentiment}]\n")
    engine.dispose()
    return config


def test_tail_follow_ends_when_the_pipe_closes(tmp_path: Path) -> None:
    config = quiet_database(tmp_path)
    command = shlex.join(map(str, (COMMAND, "tail", "-f", "--config", config)))
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (
        result.stdout == "2024-03-10 10:00:00  ON        crowd-sentiment  crowd_sentiment 0.25  (received 10:00:00)\n"
    )
