"""A throw-away PostgreSQL of our own: a real server that a test may stop, kill and start again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

USER = "ingestor"
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: INGESTOR_TEST_PG_BIN, else the newest installed, else PATH's."""
    named = os.environ.get("INGESTOR_TEST_PG_BIN")
    if named:
        return Path(named)
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if installed:
        return max(installed, key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """One server with its own cluster in a short temporary path. Close it, or use ``own_server``."""

    def __init__(self, binaries: Path, *, fsync: bool = False) -> None:
        self._binaries = binaries
        self._fsync = fsync
        self._account = _account()
        # Not pytest's folder: another account must be able to walk to it, and a socket's path has 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="ipg-", dir="/tmp"))
        if self._account:
            shutil.chown(self._folder, self._account)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        options = ["-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", *options, "-D", self._data)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    @property
    def socket_folder(self) -> Path:
        """Where the unix socket lies."""
        return self._folder

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self, timeout_seconds: float = 30) -> None:
        """Start and wait until it answers. After ``kill`` the first tries may find old sessions dying."""
        deadline = time.monotonic() + timeout_seconds
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not started within {timeout_seconds} s:\n{self.log[-2000:]}")
            if not self.running:
                self._spawn()
            time.sleep(0.02)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "immediate") -> None:
        """Stop and wait for the end. ``immediate`` leaves recovery to the next start."""
        self._signal(_STOP_SIGNALS[mode])

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP the server and its sessions: connections stay open, nothing answers. ``resume`` ends it."""
        self._signal_family(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_family(signal.SIGCONT)

    def close(self) -> None:
        """Stop if it runs, and remove the cluster."""
        self.resume()
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # Seen once in a while: a session forked in that very moment misses the signal, and 60 s pass.
            self._signal_family(signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _signal_family(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            return
        pid = self._process.pid
        # Sessions have process groups of their own, so they are looked up.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for target in (pid, *map(int, children)):
            try:
                os.kill(target, number)
            except ProcessLookupError:
                pass  # a session that ended meanwhile

    def _spawn(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *self._settings()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C in a terminal is for pytest, which then stops us in order
                **_as_user(self._account),
            )

    def _settings(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "on" if self._fsync else "off",
            "max_connections": 50,
            "shared_buffers": "64MB",
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _answers(self) -> bool:
        if not self.running:
            return False
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self._folder,
            **_as_user(self._account),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stderr}")


def _account() -> str | None:
    """As root PostgreSQL refuses to start: the account to run it as. None for one's own."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _as_user(account: str | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []}


@contextmanager
def own_server(binaries: Path, *, fsync: bool = False) -> Iterator[Postgres]:
    """A running server; stopped and removed at the end."""
    server = Postgres(binaries, fsync=fsync)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def fresh_database(server_url: str, template_url: str = "") -> Iterator[str]:
    """The URL of a new database, empty or a copy of another; dropped at the end, whoever is still connected to it."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    template = conninfo_to_dict(template_url)["dbname"] if template_url else "template1"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    _execute(server_url, create.format(sql.Identifier(name), sql.Identifier(str(template))))
    try:
        yield _with_database(server_url, name)
    finally:
        _execute(server_url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def _with_database(url: str, name: str) -> str:
    known = conninfo_to_dict(url)
    password = f":{known['password']}" if known.get("password") else ""
    where = f"{known['host']}:{known.get('port', 5432)}"
    return f"postgresql://{known.get('user', USER)}{password}@{where}/{name}"
