"""Fixtures for tests of processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..support.daemon import COMMAND, write_config
from ..support.fork_server import ForkedCommand, ForkedDaemon, ForkServer
from ..support.postgres_server import free_port

KEY = "the-key-of-the-shared-daemon"
PATHS = {"/real-time/crowd-sentiment": ["AAPL", "ON"], "/real-time/tweet-volume": ["6E_F"]}


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A server that forks commands whose modules are already imported."""
    with ForkServer() as running:
        yield running


@dataclass(frozen=True, slots=True)
class SharedDaemon:
    """A simulated provider with a value per second, and a daemon that stores them. Tests read from it only."""

    config: Path
    daemon: ForkedDaemon
    fork_server: ForkServer

    def command_line(self, *arguments: str | Path) -> list[str | Path]:
        """Return a command line of the installed command with this config."""
        return [COMMAND, *arguments, "--config", self.config]

    @property
    def key(self) -> dict[str, str]:
        """The environment variable with the API key."""
        return {"INGESTOR_PROVIDER__API_KEY": KEY}


@pytest.fixture(scope="session")
def shared_daemon(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedDaemon]:
    """The daemon that all tests share."""
    folder, port = tmp_path_factory.mktemp("shared"), free_port()
    serve = ("simulate", "--port", str(port), "--api-key", KEY, "--cadence", "1")
    provider = ForkedCommand(fork_server, *serve, folder=folder)
    database = f"sqlite:///{folder / 'ingestor.db'}"
    config = write_config(folder, url=f"http://127.0.0.1:{port}", database_url=database, subscriptions=PATHS)
    daemon = ForkedDaemon(fork_server, config, KEY)
    provider.start()
    daemon.start()
    deadline = time.monotonic() + 20
    while not daemon.status.get("rows", {}).get("new"):
        assert time.monotonic() < deadline, daemon.stderr
        time.sleep(0.05)
    yield SharedDaemon(config, daemon, fork_server)
    daemon.kill()
    provider.kill()
