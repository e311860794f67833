"""A temporary PostgreSQL server that a test can stop, kill and restart."""

from __future__ import annotations

import os
import pwd
import secrets
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
FIRST_PORT, END_PORT = 20_000, 32_768  # below those for clients and for servers that ask for any
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def find_binaries() -> Path | None:
    """Return the folder of initdb and postgres: INGESTOR_TEST_PG_BIN, the newest installed, or the one in PATH."""
    configured = os.environ.get("INGESTOR_TEST_PG_BIN")
    if configured:
        return Path(configured)
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if installed:
        return max(installed, key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free, and which Linux does not give to another socket by itself."""
    while True:
        port = FIRST_PORT + secrets.randbelow(END_PORT - FIRST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Postgres:
    """A server with its own cluster in a short temporary path. Close it, or use ``own_server``.

    With ``primary``, it is a standby: its data is a copy of that server, from which it streams once it is started.
    """

    def __init__(self, binaries: Path, *, fsync: bool = False, primary: Postgres | None = None) -> None:
        self._binaries = binaries
        self._fsync = fsync
        # Not in pytest's folder, because another account must have access, and a socket's path is limited to 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="ipg-", dir="/tmp"))
        give_to_account(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        if primary is not None:
            self.follow(primary)
            return
        options = ["-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", *options, "-D", self._data)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    @property
    def data_folder(self) -> Path:
        """The folder of the cluster, with its configuration files."""
        return Path(self._data)

    @property
    def socket_folder(self) -> Path:
        """The folder of the unix socket."""
        return self._folder

    @property
    def log(self) -> str:
        """The text of the server's log."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the running server, whose children are its sessions and other processes."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self, timeout_seconds: float = 30) -> None:
        """Start and wait until it responds. After ``kill``, old sessions may make the first attempts fail."""
        deadline = time.monotonic() + timeout_seconds
        while not self._responds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not started within {timeout_seconds} s:\n{self.log[-2000:]}")
            if not self.running:
                self._spawn()
            time.sleep(0.02)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "immediate") -> None:
        """Stop the server and wait for its end. After ``immediate``, the next start runs crash recovery."""
        self._signal(_STOP_SIGNALS[mode])

    def request_stop(self) -> None:
        """Let the server stop once its sessions have ended. It admits no other ones meanwhile."""
        assert self._process is not None
        self._process.send_signal(_STOP_SIGNALS["smart"])

    def kill(self) -> None:
        """Send SIGKILL, as the kernel does when memory is exhausted."""
        self._signal(signal.SIGKILL)

    def kill_family(self) -> None:
        """Send SIGKILL to the server and its sessions, as when the machine is lost: nothing commits any more."""
        self._signal_family(signal.SIGSTOP)  # so that none forks while they are killed one by one
        self._signal_family(signal.SIGKILL)
        self.kill()

    def pause(self) -> None:
        """Send SIGSTOP to the server and its sessions: connections stay open without responses, until ``resume``."""
        self._signal_family(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_family(signal.SIGCONT)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement outside of a transaction, as the superuser in ``postgres``, and return its rows."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def configure(self, name: str, value: str) -> None:
        """Change a setting of the running server. It survives restarts."""
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    def follow(self, primary: Postgres) -> None:
        """Replace the data by a copy of another server, and stream from that one once started. Stops this server."""
        self.stop()
        shutil.rmtree(self._data, ignore_errors=True)
        self._copy(primary, Path(self._data), "--write-recovery-conf")

    def promote(self) -> None:
        """End the standby's recovery: it accepts writes when this returns, on a timeline of its own."""
        ((promoted,),) = self.execute("SELECT pg_promote()")
        assert promoted, self.log[-2000:]

    def backup(self) -> Path:
        """Return a new copy of the running server's data, for ``restore``. It is removed with the server."""
        copy = self._folder / f"backup-{uuid.uuid4().hex[:8]}"
        self._copy(self, copy)
        return copy

    def restore(self, backup: Path) -> None:
        """Stop at once, replace the data by a backup, and start. The server's timeline stays what it was."""
        self.stop()
        shutil.rmtree(self._data)
        subprocess.run(["cp", "-a", backup, self._data], check=True)
        self.start()

    def close(self) -> None:
        """Stop the server if it runs, and remove the cluster."""
        self.resume()
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _copy(self, server: Postgres, folder: Path, *options: str) -> None:
        source = ("-h", "127.0.0.1", "-p", str(server.port), "-U", USER)
        self._run("pg_basebackup", *source, "-D", str(folder), "-c", "fast", "-X", "fetch", "--no-sync", *options)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # Happens occasionally: a session forked at this moment misses the signal, and the stop takes 60 s.
            self._signal_family(signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _signal_family(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            return
        pid = self._process.pid
        # Sessions have their own process groups, so each one gets the signal.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for target in (pid, *map(int, children)):
            try:
                os.kill(target, number)
            except ProcessLookupError:
                pass  # the session has ended

    def _spawn(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *self._settings()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C in a terminal reaches only pytest, which then stops the server
                **as_account(),
            )

    def _settings(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "on" if self._fsync else "off",
            "max_connections": 50,
            "shared_buffers": "64MB",
            "wal_keep_size": "1GB",  # what a standby may lag behind and still go on
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _responds(self) -> bool:
        if not self.running:
            return False
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        result = subprocess.run(
            [self._binaries / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self._folder,
            **as_account(),
        )
        if result.returncode:
            raise RuntimeError(f"{program} failed:\n{result.stderr}")


def account() -> str | None:
    """Return the account to run PostgreSQL as, because it refuses to run as root. None for the current one."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def as_account() -> dict[str, Any]:
    """Return the arguments of ``subprocess`` that start a process as this account."""
    name = account()
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []} if name else {}


def give_to_account(path: Path) -> None:
    """Change the owner of a file or folder to this account."""
    if name := account():
        shutil.chown(path, name)


@contextmanager
def own_server(binaries: Path, *, fsync: bool = False) -> Iterator[Postgres]:
    """Start a server; stop and remove it at the end."""
    server = Postgres(binaries, fsync=fsync)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def fresh_database(server_url: str, template_url: str = "", *, encoding: str = "") -> Iterator[str]:
    """Create a database, empty or a copy of another, and yield its URL. Drop it at the end despite open connections."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    default = "template0" if encoding else "template1"  # only the first may be copied into another encoding
    template = conninfo_to_dict(template_url)["dbname"] if template_url else default
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING {} STRATEGY file_copy")
    _execute(
        server_url, create.format(sql.Identifier(name), sql.Identifier(str(template)), sql.Literal(encoding or "UTF8"))
    )
    try:
        yield _with_database(server_url, name)
    finally:
        _execute(server_url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def _with_database(url: str, name: str) -> str:
    server = conninfo_to_dict(url)
    password = f":{server['password']}" if server.get("password") else ""
    address = f"{server['host']}:{server.get('port', 5432)}"
    return f"postgresql://{server.get('user', USER)}{password}@{address}/{name}"
