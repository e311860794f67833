"""The installed daemon as a process, with default settings except those given."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.postgres_server import free_port
from tests.tools.benchmarks.committed_rows import CommittedRows
from tests.tools.benchmarks.environment import Environment, until

PATH = "/real-time/crowd-sentiment"
END_SECONDS = 20.0


class Daemon:
    """``with Daemon(environment) as daemon``: a daemon that is subscribed to ``tickers`` tickers.

    At the end it gets SIGTERM, then SIGKILL.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        tickers: int = 1,
        settings: str = "",
        spool_settings: str = "",
        database_url: str = "",
    ) -> None:
        self._environment = environment
        self._tickers = tickers
        self.tables = CommittedRows(database_url or environment.database_url)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._config = environment.folder / "config.yaml"
        names = ", ".join(f"T{number}" for number in range(tickers))
        self._config.write_text(
            f"provider: {{url: '{environment.load.url}'}}\n"
            f"database: {{url: '{database_url or environment.database_url}'{settings and ', ' + settings}}}\n"
            f"spool: {{{spool_settings}}}\n"
            f"http: {{listen: '127.0.0.1:{free_port()}'}}\n"
            "log: {level: error}\n"
            f"subscriptions: [{{path: {PATH}, tickers: [{names}]}}]\n"
        )

    def __enter__(self) -> Self:
        self.start()
        try:
            self._environment.load.wait_for_subscriptions(self._tickers)
            until(self.tables.has_instance)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        notices = self._environment.folder / "notify"
        self._notices.bind(str(notices))
        self._notices.settimeout(60)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "NOTIFY_"))}
        own = {"INGESTOR_PROVIDER__API_KEY": "key", "NOTIFY_SOCKET": str(notices)}
        command = [str(Path(sys.executable).with_name("ingestor")), "run", "--config", str(self._config)]
        self._process = subprocess.Popen(command, env=clean | own)

    def wait_until_ready(self) -> None:
        """Wait for READY=1 on the notify socket."""
        while b"READY=1" not in self._notices.recv(4096).splitlines():
            pass

    def stop(self) -> None:
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
        """The peak resident memory so far."""
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024
