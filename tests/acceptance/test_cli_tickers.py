"""`ingestor add`, `remove` and `reload` in a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingestor.daemon.control_socket import ControlError, control_server

from ..support.daemon import until
from .conftest import SharedDaemon
from .test_cli_start import run_cli

CONFIG = """\
# our tickers
subscriptions:
  - path: /real-time/crowd-sentiment   # since June
    tickers: [AAPL, ON]
  # - path: /real-time/tweet-buzz
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return file


def test_add_and_remove_restore_the_file(config: Path) -> None:
    added = run_cli("add", "007", "ON", "NO", "--path", "/real-time/crowd-sentiment", cwd=config.parent)
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout == (
        f"{config}: /real-time/crowd-sentiment\n"
        "-    tickers: [AAPL, ON]\n"
        "+    tickers: [AAPL, ON, 007, NO]\n"
        "007: added\n"
        "ON: already subscribed\n"
        "NO: added\n"
    )
    shown = json.loads(run_cli("config", "show", "--output", "json", cwd=config.parent).stdout)
    assert [subscription["params"]["ticker"] for subscription in shown["subscriptions"]] == ["AAPL", "ON", "007", "NO"]
    removed = run_cli("remove", "NO", "007", "GONE", "--reload", cwd=config.parent)  # the only path
    assert (removed.returncode, removed.stderr) == (0, "")
    assert removed.stdout.endswith(
        "NO: removed\n007: removed\nGONE: not in the file\n"
        "daemon: no running daemon could be reached; the change applies at the next start\n"
    )
    assert config.read_text() == CONFIG


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add", "A B", "--path", "p"], 2, "a ticker must not contain spaces"),
        (["add", "A", "--path", "https://x/y"], 2, "must be the path alone"),
        (
            ["remove", "AAPL", "ON"],
            78,
            "config.yaml:3:5: subscriptions: cannot be edited safely: no subscription would be left; stop",
        ),
        (["remove", "A", "--config", "gone.yaml"], 78, "there is no such file"),
    ],
)
def test_rejected_change_leaves_the_file_unchanged(config: Path, arguments: list[str], code: int, message: str) -> None:
    result = run_cli(*arguments, cwd=config.parent)
    assert result.returncode == code
    assert message in result.stderr
    assert config.read_text() == CONFIG


async def test_reload_option_shows_the_daemons_response(config: Path) -> None:
    texts: list[str] = []

    async def reload(_request: dict[str, Any]) -> dict[str, Any]:
        texts.append(config.read_text())
        if "TSLA" in texts[-1]:
            raise ControlError("config.yaml:4:5: \x1b[2J the old one stays")
        return {"added": 1, "needs_restart": ["http", "log.level"], "notes": []}

    (config.parent / "spool").mkdir()
    async with control_server(config.parent / "spool", {"reload": reload}):
        good = await asyncio.to_thread(run_cli, "add", "NO", "--reload", cwd=config.parent)
        again = await asyncio.to_thread(run_cli, "reload", "--output", "json", cwd=config.parent)
        bad = await asyncio.to_thread(run_cli, "add", "TSLA", "--reload", cwd=config.parent)
    assert good.stdout.endswith("NO: added\nadded: 1\nneeds restart: http, log.level\n")
    assert json.loads(again.stdout) == {"added": 1, "needs_restart": ["http", "log.level"], "notes": []}
    assert (bad.returncode, bad.stderr) == (69, "config.yaml:4:5: \\u001b[2J the old one stays\n")
    assert ["NO" in text for text in texts] == [True, True, True]


async def test_running_daemon_applies_added_and_removed_tickers(shared_daemon: SharedDaemon) -> None:
    before, path = shared_daemon.config.read_text(), "/real-time/tweet-volume"
    connections = [connection["id"] for connection in shared_daemon.daemon.status["connections"]]

    def command_line(command: str) -> str:
        line = shared_daemon.command_line(command, "NO", "--path", path, "--reload")
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout

    assert command_line("add").endswith("NO: added\nadded: 1\nremoved: 0\n")
    rows = "SELECT count(*) FROM tweet_volume WHERE ticker = 'NO'"
    await until(lambda: shared_daemon.daemon.db.scalar(rows))
    assert command_line("remove").endswith("NO: removed\nadded: 0\nremoved: 1\n")
    await shared_daemon.daemon.wait_until_live()
    assert [connection["id"] for connection in shared_daemon.daemon.status["connections"]] == connections
    assert shared_daemon.config.read_text() == before
