"""Run the daemon under test from a config file, in the test's process or as a process of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp
from pydantic import SecretStr

from ingestor.config import load
from ingestor.daemon.service import Service
from ingestor.monitoring.status import Status

from .db_reader import DbReader
from .postgres_server import free_port

COMMAND = Path(sys.executable).with_name("ingestor")
TIMEOUT_SECONDS = 20
POLL_SECONDS = 0.05

T = TypeVar("T")


async def until(condition: Callable[[], T], timeout_seconds: float = TIMEOUT_SECONDS) -> T:
    """Wait until the condition is true, and return its value. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_seconds} s")
        await asyncio.sleep(POLL_SECONDS)
    return found


def write_config(
    folder: Path,
    *,
    url: str,
    database_url: str,
    subscriptions: Mapping[str, Sequence[str]],
    **sections: Mapping[str, Any],
) -> Path:
    """Write a config file into ``folder``, which will also contain the spool.

    ``subscriptions`` maps paths to tickers; an empty list means all tickers.
    """
    document: dict[str, Any] = {
        "provider": {"url": url},
        "database": {"url": database_url},
        "http": {"listen": f"127.0.0.1:{free_port()}"},
        "subscriptions": [
            {"path": path, "tickers": list(tickers)} if tickers else {"path": path}
            for path, tickers in subscriptions.items()
        ],
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    file = folder / "config.yaml"
    file.write_text(json.dumps(document, indent=1))  # JSON is valid YAML
    return file


class InProcessDaemon:
    """The daemon in the test's own process: ``async with InProcessDaemon(config, api_key) as daemon``.

    At the end it is stopped as by SIGTERM, and the database must be consistent.
    """

    def __init__(self, config_file: Path, api_key: str) -> None:
        config = load(config_file, env={})
        self._service = Service(config, SecretStr(api_key))
        document = json.loads(config_file.read_text())
        self.db = DbReader(document["database"]["url"])

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._service.run())
        await until(lambda: self._task.done() or (self._service.url and self.status.database.up))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop()
        if kind is None:
            self.db.assert_consistent()

    async def stop(self) -> None:
        """Drain and stop. Raises the exception that stopped the daemon, if any."""
        if not self._task.done():
            self._service.stop()
        await self._task

    @property
    def status(self) -> Status:
        return self._service.status()

    @property
    def url(self) -> str:
        """The URL of the status page."""
        assert self._service.url
        return self._service.url

    @property
    def states(self) -> list[str]:
        """The state of each subscription, in the order of the config."""
        return [subscription.state for subscription in self.status.subscriptions]

    @property
    def connection_ids(self) -> list[str | None]:
        """The id of each connection, in the order of the config; None while disconnected."""
        return [connection.id if connection.connected else None for connection in self.status.connections]

    async def wait_until_live(self) -> list[str | None]:
        """Wait until every subscription is live, and return the ids of the connections."""
        await until(lambda: set(self.states) == {"live"})
        return self.connection_ids

    async def metrics(self) -> str:
        """Return the page that Prometheus reads."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._service.url}/metrics") as response:
            return await response.text()

    async def wait_for_samples(self, expected: Callable[[], object]) -> None:
        """Wait until the database contains exactly the samples ``{Key: value}`` that ``expected`` returns by then."""
        await until(lambda: self.db.current() == expected())


class CommandProcess:
    """The installed command as a process: ``async with CommandProcess("run", "--config", file) as program``.

    It is killed at the end if it still runs. Its output is in ``stdout`` and ``stderr``. Warnings are errors, and the
    ingestor's settings in our own environment are not passed on.
    """

    def __init__(self, *arguments: str | Path, folder: Path, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "NOTIFY_"))}
        self._environment = clean | {"PYTHONWARNINGS": "error"} | environment
        self._command = [COMMAND, *arguments]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process, or restart it."""
        with self._output_file("stdout").open("ab") as stdout, self._output_file("stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self._environment
            )

    def kill(self) -> None:
        """Send SIGKILL if the process still runs, and wait for its end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def wait_for_exit(self, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """Wait for the end of the process, and return its exit code."""
        await until(lambda: self.has_ended, timeout_seconds)
        assert self._process is not None
        return int(self._process.returncode)

    def send_sigterm(self) -> None:
        """Send SIGTERM without waiting."""
        os.kill(self.pid, signal.SIGTERM)

    async def terminate(self, timeout_seconds: float = 10) -> int:
        """Send SIGTERM, wait for the end of the process, and return its exit code."""
        self.send_sigterm()
        return await self.wait_for_exit(timeout_seconds)

    @property
    def has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._output_file("stdout").read_text()

    @property
    def stderr(self) -> str:
        return self._output_file("stderr").read_text()

    def _output_file(self, stream: str) -> Path:
        return self._folder / f"{id(self)}.{stream}"


class DaemonProcess(CommandProcess):
    """``ingestor run`` as a process, with its status port and its database."""

    def __init__(self, config_file: Path, api_key: str, **environment: str) -> None:
        environment = {"INGESTOR_PROVIDER__API_KEY": api_key, **environment}
        super().__init__("run", "--config", config_file, folder=config_file.parent, **environment)
        document = json.loads(config_file.read_text())
        self._listen = document["http"]["listen"]
        self.db = DbReader(environment.get("INGESTOR_DATABASE__URL", document["database"]["url"]))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the status page."""
        host, _, port = self._listen.rpartition(":")
        return host, int(port)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page. Raises OSError if the port is closed."""
        connection = http.client.HTTPConnection(self._listen, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    @property
    def status(self) -> dict[str, Any]:
        """Return status.json; empty while the port is closed."""
        try:
            found: dict[str, Any] = json.loads(self.get("/status.json")[1])
        except (OSError, http.client.HTTPException):
            return {}
        return found

    async def wait_until_live(self) -> None:
        """Wait until every subscription is live and the database is up."""
        await until(lambda: self.is_live)

    async def wait_for_samples(self, expected: Callable[[], object]) -> None:
        """Wait until the database contains exactly the samples ``{Key: value}`` that ``expected`` returns by then."""
        await until(lambda: self.db.current() == expected())

    @property
    def is_live(self) -> bool:
        """Whether every subscription is live and the database is up."""
        status = self.status
        states = {subscription["state"] for subscription in status.get("subscriptions", ())}
        return states == {"live"} and bool(status["database"]["up"])
