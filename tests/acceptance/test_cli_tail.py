"""`ingestor tail` as it is typed."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

from ingestor.store import migrate
from ingestor.store.engine import make_engine

from ..integration.store.row_factory import Database
from ..support.daemon import COMMAND
from .conftest import Desk


def test_following_shows_every_value_once_until_ctrl_c(desk: Desk) -> None:
    process = subprocess.Popen(
        desk.typed("tail", "-f", "-n", "3", "--output", "json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(12)]  # what was there, and some seconds of what comes
    process.send_signal(signal.SIGINT)
    more, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (0, "")
    seen = [json.loads(line) for line in lines + more.splitlines()]
    told = [(one["seq"], one["ticker"], one["ts"], one["value"]) for one in seen]
    assert len(set(told)) == len(told)
    assert told[3:] == sorted(told[3:])
    # All that the tables hold of the entries that were followed is among them.
    first, last = seen[3]["seq"], seen[-1]["seq"]
    stored = desk.daemon.books.rows(f"SELECT seq, value FROM observations WHERE seq > {first} AND seq < {last}")
    assert {(one["seq"], one["value"]) for one in stored} <= {(one["seq"], one["value"]) for one in seen}


def test_one_ticker_for_people(desk: Desk) -> None:
    said = subprocess.run(desk.typed("tail", "6E_F", "--limit", "2"), capture_output=True, text=True, timeout=20)
    assert (said.returncode, said.stderr) == (0, "")
    first, second = said.stdout.splitlines()
    assert first < second
    assert "  6E_F      tweet-volume  volume " in first


def quiet_database(folder: Path) -> Path:
    """A configuration whose database holds one value, and nobody writes to it."""
    engine = make_engine(f"sqlite:///{folder / 'ingestor.db'}")
    migrate.upgrade(engine)
    database = Database(engine)
    database.instance(1, "10:00", position=7)
    database.sample("crowd-sentiment", "crowd_sentiment", "ON", "10:00", 0.25, seq=7)
    config = folder / "config.yaml"
    config.write_text("subscriptions: [{path: crowd-sentiment}]\n")
    engine.dispose()
    return config


def test_its_end_of_a_pipe_closes_though_nothing_more_comes(tmp_path: Path) -> None:
    config = quiet_database(tmp_path)
    command = shlex.join(map(str, (COMMAND, "tail", "-f", "--config", config)))
    began = time.monotonic()
    said = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=20
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "2024-03-10 10:00:00  ON        crowd-sentiment  crowd_sentiment 0.25  (received 10:00:00)\n"
    assert time.monotonic() - began < 10
