"""The daemon as it is installed, with its defaults but for what is named, as a process; and what is in its tables."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from tests.support.postgres_server import free_port
from tests.tools.benchmarks.stage import Stage, until

PATH = "/real-time/crowd-sentiment"
END_SECONDS = 20.0


class Tables:
    """What has been committed. Looked at rather than asked of the daemon, which would have to answer meanwhile."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """All rows; none as long as there is no such table."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            return list(self._connection.execute(query).fetchall())
        except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):
            return []

    def number(self, query: str) -> int:
        rows = self.ask(query)
        return int(rows[0][0] or 0) if rows else 0

    def ready(self) -> bool:
        return self.number("SELECT count(*) FROM instances") == 1

    def rows(self) -> int:
        """Rows decoded and committed, whatever became of them."""
        return self.number("SELECT sum(row_count) FROM batches")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> Any:
        if self._url.startswith("sqlite"):
            return sqlite3.connect(f"file:{self._url.removeprefix('sqlite:///')}?mode=ro", uri=True)
        return psycopg.connect(self._url, autocommit=True)


class Daemon:
    """``with Daemon(stage) as daemon``: started, and subscribed to so many tickers. Ended by SIGTERM, then SIGKILL."""

    def __init__(self, stage: Stage, *, tickers: int = 1, settings: str = "", database_url: str = "") -> None:
        self._stage = stage
        self._tickers = tickers
        self.tables = Tables(database_url or stage.database_url)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._config = stage.folder / "config.yaml"
        names = ", ".join(f"T{number}" for number in range(tickers))
        self._config.write_text(
            f"provider: {{url: '{stage.load.url}'}}\n"
            f"database: {{url: '{database_url or stage.database_url}'{settings and ', ' + settings}}}\n"
            f"http: {{listen: '127.0.0.1:{free_port()}'}}\n"
            "log: {level: error}\n"
            f"subscriptions: [{{path: {PATH}, tickers: [{names}]}}]\n"
        )

    def __enter__(self) -> Self:
        self.start()
        try:
            self._stage.load.subscribed(self._tickers)
            until(self.tables.ready)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.end()

    def start(self) -> None:
        notices = self._stage.folder / "notify"
        self._notices.bind(str(notices))
        self._notices.settimeout(60)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "NOTIFY_"))}
        own = {"INGESTOR_PROVIDER__API_KEY": "key", "NOTIFY_SOCKET": str(notices)}
        command = [str(Path(sys.executable).with_name("ingestor")), "run", "--config", str(self._config)]
        self._process = subprocess.Popen(command, env=clean | own)

    def ready(self) -> None:
        """Wait for READY."""
        while b"READY=1" not in self._notices.recv(4096).splitlines():
            pass

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.tables.close()
        self._notices.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def peak_mib(self) -> float:
        """The most that was resident so far."""
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024
