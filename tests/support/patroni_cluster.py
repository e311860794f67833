"""Three PostgreSQL nodes under Patroni with etcd on loopback, from Debian's packages, to kill and to switch over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from .postgres_server import USER, as_account, find_binaries, free_port, give_to_account
from .requirements import skip_missing

NODES = 3
START_SECONDS = 90
TTL_SECONDS = 20  # without a renewal by then, the leader has lost its lock. The shortest that Patroni takes
LOOP_SECONDS = 2
RETRY_SECONDS = 3
_REPLICATION = {"username": "replicator", "password": "replicator"}
_HBA = ("local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust")
_NO_FLOW = "host replication all all reject\n"


class PatroniNode:
    """One Patroni with its PostgreSQL. It is started by ``start`` and must be closed."""

    def __init__(self, name: str, folder: Path, binaries: Path, etcd_port: int) -> None:
        self.name = name
        self.port = free_port()
        self._rest_port = free_port()
        self._folder = folder / name
        self._folder.mkdir(mode=0o700)
        self._data = self._folder / "data"
        self._config = self._folder / "patroni.yml"
        self._config.write_text(json.dumps(self._settings(binaries, etcd_port)))  # JSON is valid YAML
        for path in (self._folder, self._config):
            give_to_account(path)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/usr/bin/patroni", self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                **as_account(),
            )

    def kill_postgres(self) -> None:
        """Send SIGKILL to the PostgreSQL and its sessions. Its Patroni decides what to do."""
        for pid in self._postgres_pids():
            _kill(pid)

    def kill(self) -> None:
        """Send SIGKILL to Patroni and PostgreSQL, as when the machine is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.kill_postgres()

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser in ``postgres``, and return its rows. Raises OperationalError."""
        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=2) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request to Patroni's REST API, and return its response. Raises OSError."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._rest_port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read().decode()
        return json.loads(text) if text[:1] in "{[" else text

    @property
    def role(self) -> str:
        """Its role by its own word, such as ``master`` or ``replica``; empty if Patroni does not respond."""
        try:
            return str(self.request("GET", "/patroni").get("role", ""))
        except OSError:
            return ""

    @property
    def accepts_writes(self) -> bool:
        try:
            return self.execute("SELECT pg_is_in_recovery()") == [(False,)]
        except psycopg.OperationalError:
            return False

    def cut(self) -> None:
        """Let no standby stream from this node until it is started again."""
        hba = self._data / "pg_hba.conf"
        hba.write_text(_NO_FLOW + hba.read_text())
        self.execute("SELECT pg_reload_conf()")
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")

    @property
    def log(self) -> str:
        """What Patroni and PostgreSQL have logged."""
        return (self._folder / "log").read_text(errors="replace")

    def _postgres_pids(self) -> list[int]:
        try:
            postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
            command = Path(f"/proc/{postmaster}/cmdline").read_bytes()
            if str(self._data).encode() not in command:
                return []  # it ended, and the number is another process now
            os.kill(postmaster, signal.SIGSTOP)  # so that it starts no session meanwhile
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        except (OSError, IndexError):
            return []
        return [postmaster, *map(int, children)]

    def _settings(self, binaries: Path, etcd_port: int) -> dict[str, Any]:
        rest = f"127.0.0.1:{self._rest_port}"
        shared = {
            "ttl": TTL_SECONDS,
            "loop_wait": LOOP_SECONDS,
            "retry_timeout": RETRY_SECONDS,
            "maximum_lag_on_failover": 1 << 30,
            "postgresql": {"use_pg_rewind": True, "parameters": {"wal_keep_size": "1GB", "max_connections": 50}},
        }
        return {
            "scope": "ingestor",
            "name": self.name,
            "restapi": {"listen": rest, "connect_address": rest},
            "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
            "bootstrap": {"dcs": shared, "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"]},
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self._data),
                "bin_dir": str(binaries),
                "pgpass": str(self._folder / "pgpass"),
                "authentication": {"superuser": {"username": USER, "password": USER}, "replication": _REPLICATION},
                "pg_hba": list(_HBA),
                "parameters": {"unix_socket_directories": str(self._folder), "shared_buffers": "64MB"},
            },
        }


class PatroniCluster:
    """Three nodes and an etcd, of which all are started. Close it, or use ``own_patroni_cluster``."""

    def __init__(self, binaries: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ipat-", dir="/tmp"))
        give_to_account(self._folder)
        self._etcd: subprocess.Popen[bytes] | None = None
        self.nodes: list[PatroniNode] = []
        try:
            etcd_port = self._start_etcd()
            self.nodes = [PatroniNode(name, self._folder, binaries, etcd_port) for name in ("a", "b", "c")[:NODES]]
            self.make_whole()
        except BaseException:
            self.close()
            raise

    def url(self, database: str) -> str:
        """Return a URL of all nodes, of which libpq takes the one that accepts writes."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://{USER}@{hosts}/{database}?target_session_attrs=read-write"

    @property
    def leader(self) -> PatroniNode:
        """The node that leads and accepts writes. Raises LookupError while there is none."""
        for node in self.nodes:
            if node.role == "master" and node.accepts_writes:
                return node
        raise LookupError("no node leads")

    def has_leader(self, but: PatroniNode | None = None) -> bool:
        """Return whether a node, other than ``but``, leads and accepts writes."""
        try:
            return self.leader is not but
        except LookupError:
            return False

    def make_whole(self) -> None:
        """Start the nodes that do not run, and wait until one leads and all others stream from it."""
        for node in self.nodes:
            node.start()
        _wait(self._is_whole, "one leader and two standbys that stream", self)

    def set_synchronous(self, synchronous: bool) -> None:
        """Switch Patroni's ``synchronous_mode``, and wait until it holds."""
        self.leader.request("PATCH", "/config", {"synchronous_mode": synchronous})
        names = "SELECT current_setting('synchronous_standby_names') <> ''"
        _wait(lambda: self.leader.execute(names) == [(synchronous,)], f"synchronous_mode {synchronous}", self)
        wanted = "sync" if synchronous else "async"
        query = f"SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = '{wanted}'"
        _wait(lambda: self.leader.execute(query) == [(True,)], f"a standby that is {wanted}", self)

    def switch_over(self) -> None:
        """Let the leader hand over to a standby, as before maintenance, and wait until that one leads."""
        leader = self.leader
        leader.request("POST", "/switchover", {"leader": leader.name})
        _wait(lambda: self.has_leader(but=leader), "another leader", self)

    def close(self) -> None:
        """End everything, and remove it."""
        for node in self.nodes:
            node.kill()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_etcd(self) -> int:
        port, peer_port = free_port(), free_port()
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        with (self._folder / "etcd.log").open("ab") as log:
            self._etcd = subprocess.Popen(
                [
                    *("/usr/bin/etcd", "--data-dir", self._folder / "etcd"),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_account(),
            )
        return port

    def _is_whole(self) -> bool:
        """Return whether all follow the leader, by its own word and by Patroni's, which may switch over only then."""
        try:
            leader = self.leader
            streaming = leader.execute("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
            members = leader.request("GET", "/cluster")["members"]
        except (LookupError, OSError, psycopg.OperationalError):
            return False
        standbys = {node.name for node in self.nodes if node is not leader}
        running = {member["name"] for member in members if member["state"] in ("running", "streaming")}
        return {name for (name,) in streaming} == standbys and standbys <= running


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended


def _wait(condition: Callable[[], bool], what: str, cluster: PatroniCluster) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"== {node.name}\n{node.log[-1500:]}" for node in cluster.nodes)
            raise TimeoutError(f"waited {START_SECONDS} s for {what}\n{logs}")
        time.sleep(0.1)


@contextmanager
def own_patroni_cluster() -> Iterator[PatroniCluster]:
    """Start the cluster, and remove it at the end. Skips the test if a program is missing."""
    binaries = find_binaries()
    for program in ("/usr/bin/patroni", "/usr/bin/etcd"):
        if binaries is None or not Path(program).exists():
            skip_missing("Patroni: apt install postgresql patroni etcd-server")
    assert binaries is not None
    cluster = PatroniCluster(binaries)
    try:
        yield cluster
    finally:
        cluster.close()
