"""`ingestor check` in a process, and the first steps of a new user, as `ingestor init` prints them."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ..support.daemon import COMMAND, until
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedCommand, ForkServer
from ..support.postgres_server import free_port
from .conftest import KEY, PATHS, SharedDaemon
from .test_cli_start import processor_seconds

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("INGESTOR_")}


def test_check_connect_passes_with_healthy_provider(shared_daemon: SharedDaemon, tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as output:
        seconds = processor_seconds(
            *shared_daemon.command_line("check", "--connect"), stdout=output, env=CLEAN | shared_daemon.key
        )
    text = (tmp_path / "output").read_text()
    assert [line for line in text.splitlines() if line.startswith("✗")] == []
    assert "✓ token: API key accepted, tokens are valid for 5h" in text
    for path, (ticker, *_) in PATHS.items():
        assert re.search(rf"^✓ data {path} {ticker}: 60 rows up to .* UTC \([0-9.]+ s\)$", text, re.MULTILINE)
    assert KEY not in text
    assert seconds < 3  # of CPU time; on an idle machine it takes little longer


def test_check_json_exits_with_code_of_first_failure(shared_daemon: SharedDaemon) -> None:
    ended = subprocess.run(
        shared_daemon.command_line("check", "--connect", "--output", "json"),
        env=CLEAN | {"INGESTOR_PROVIDER__API_KEY": "another"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    findings = {result["name"]: result for result in json.loads(ended.stdout)}
    assert ended.returncode == 77
    assert findings["token"]["exit_code"] == 77
    assert findings["token"]["seconds"] >= 0
    assert findings["server"]["message"] == "skipped: there is no token"
    assert findings["growth"]["seconds"] is None


# First steps.


@pytest.fixture
async def provider(fork_server: ForkServer, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a simulator that accepts the key."""
    port = str(free_port())
    serve = ("simulate", "--port", port, "--api-key", KEY, "--cadence", "1")
    async with ForkedCommand(fork_server, *serve, folder=tmp_path) as program:
        await until(lambda: KEY in program.stdout)
        yield f"http://127.0.0.1:{port}"


async def test_steps_of_init_lead_to_stored_rows(provider: str, fork_server: ForkServer, tmp_path: Path) -> None:
    """Follow the steps that init prints. Only the provider's URL is different."""
    home = tmp_path / "home"
    home.mkdir()
    environment = CLEAN | {"INGESTOR_PROVIDER__URL": provider, "INGESTOR_HTTP__LISTEN": "127.0.0.1:0"}

    def command_line(line: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = re.sub(r"^ingestor\b", str(COMMAND), line)
        return subprocess.run(
            ["bash", "-c", command], cwd=home, env=environment, input=given, capture_output=True, text=True, timeout=60
        )

    steps = re.findall(r"^  \d\. (.*?)(?:    .*)?$", command_line("ingestor init").stdout, re.MULTILINE)
    paste, edit, check, run = steps
    early = command_line(check)
    assert early.returncode == 78
    assert "is missing; put it into a file of mode 0600 named by provider.api_key_file" in early.stdout
    assert command_line(paste, f"{KEY}\n").returncode == 0
    key_line = re.search(r"so that it reads  (\S+: \S+)  and", edit)
    assert key_line and "under provider:" in edit
    config = home / "config.yaml"
    config.write_text(re.sub(r"^  # api_key_file:.*$", f"  {key_line[1]}", config.read_text(), flags=re.MULTILINE))
    assert command_line("ingestor remove 6E_F --path /real-time/crowd-sentiment").returncode == 0  # choose tickers
    checked = command_line(check)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "✗" not in checked.stdout
    assert run == "ingestor run"
    db = DbReader(f"sqlite:///{home / 'ingestor.db'}")
    async with ForkedCommand(fork_server, "run", "--config", config, folder=tmp_path, **environment) as daemon:
        await until(lambda: (home / "ingestor.db").exists() and written(db) >= 10)  # the lines that tail prints
        output = command_line("ingestor tail").stdout
        assert await daemon.terminate() == 0
    assert len(output.splitlines()) == 10
    assert "6E_F" not in output


def written(db: DbReader) -> int:
    try:
        return int(db.scalar("SELECT count(*) FROM observations"))
    except sqlite3.OperationalError:  # no tables yet
        return 0
