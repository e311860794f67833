"""PgBouncer, in front of a PostgreSQL server that trusts its clients."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from .postgres_server import USER, as_account, free_port, give_to_account
from .requirements import skip_missing

START_SECONDS = 20


def find_pgbouncer() -> str:
    """Return the program, or skip the test. Debian's is in a folder that is not in every user's PATH."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        skip_missing("a connection pooler: apt install pgbouncer")
    return found


class PgBouncer:
    """A pooler as a process, under the same address after each restart. Close it, or use ``pgbouncer_for``.

    ``settings`` are further lines of its file, such as ``default_pool_size=1``.
    """

    def __init__(self, server_url: str, pool_mode: str = "session", **settings: object) -> None:
        server = urlsplit(server_url)
        assert server.port
        self._program = find_pgbouncer()
        self._folder = Path(tempfile.mkdtemp(prefix="ipgb-", dir="/tmp"))
        give_to_account(self._folder)  # it refuses to run as root
        self._process: subprocess.Popen[bytes] | None = None
        self._settings: dict[str, object] = settings
        self._pool_mode = pool_mode
        self._server_port = server.port
        self.port = free_port()
        self.url = f"postgresql://{USER}@127.0.0.1:{self.port}{server.path}"

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def start(self, pool_mode: str = "") -> None:
        """Start, in another mode if one is given, and wait until it accepts connections."""
        self._pool_mode = pool_mode or self._pool_mode
        self._write_files()
        self._process = subprocess.Popen(
            [self._program, "-q", self._folder / "ini"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **as_account(),
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._responds():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer has not started:\n{self.log[-2000:]}")
            time.sleep(0.005)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop at once: all connections end, and their transactions are rolled back."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=10)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def lead_to(self, server_port: int) -> None:
        """Open new sessions on another server, as an operator does after a failover. Sessions that are open stay."""
        self._server_port = server_port
        self._write_files()
        self.command("RELOAD")

    def command(self, command: str) -> None:
        """Run a command of the administrator, such as ``PAUSE``, and wait until it has taken effect."""
        with psycopg.connect(f"postgresql://{USER}@127.0.0.1:{self.port}/pgbouncer", autocommit=True) as console:
            console.execute(command.encode())

    def close(self) -> None:
        """Stop it if it runs, and remove its files."""
        self.stop()
        shutil.rmtree(self._folder)

    def _responds(self) -> bool:
        try:
            self.command("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True

    def _write_files(self) -> None:
        (self._folder / "users").write_text(f'"{USER}" ""\n')
        settings: dict[str, object] = {
            "pool_mode": self._pool_mode,
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": self._folder / "users",
            "admin_users": USER,
            "logfile": self._folder / "log",
            "server_login_retry": 0.1,  # seconds without attempts after one that failed
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        database = f"* = host=127.0.0.1 port={self._server_port}"
        (self._folder / "ini").write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))


@contextmanager
def pgbouncer_for(server_url: str, pool_mode: str = "session", **settings: object) -> Iterator[PgBouncer]:
    """Start a pooler whose ``url`` leads to the same database; stop and remove it at the end."""
    pooler = PgBouncer(server_url, pool_mode, **settings)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.close()
