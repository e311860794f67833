"""Two PostgreSQL servers with streaming replication: a primary that can be lost, and a standby that can lag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .postgres_server import USER, Postgres

TIMEOUT_SECONDS = 30
STANDBY_NAME = "standby"  # application_name of its connection to the primary


class PostgresCluster:
    """A primary and its standby, asynchronous until ``make_synchronous``. Close it, or use ``own_cluster``.

    After ``promote`` the names have changed places: ``primary`` is the server that was the standby, and ``standby`` is
    the old primary, dead or alive. ``rebuild`` makes that one a standby again.
    """

    def __init__(self, binaries: Path, *, fsync: bool = False) -> None:
        self.primary = Postgres(binaries, fsync=fsync)
        self._servers = [self.primary]  # in the order of the URL, which never changes
        try:
            self.primary.start()
            self.standby = Postgres(binaries, fsync=fsync, primary=self.primary)
            self._servers.append(self.standby)
            self._start_standby()
        except BaseException:
            self.close()
            raise

    def url(self, database: str = "postgres") -> str:
        """Return a URL of both servers, of which libpq takes the one that accepts writes."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self._servers)
        return f"postgresql://{USER}@{hosts}/{database}?target_session_attrs=read-write"

    def create_database(self, name: str) -> None:
        """Create an empty database, and wait until the standby has it."""
        self.primary.execute(f"CREATE DATABASE {name}")
        self.wait_for_standby()

    def cut(self) -> None:
        """Stop the flow of WAL to the standby, which goes on serving what it has received."""
        self.standby.configure("primary_conninfo", "")
        _wait(lambda: not self._senders(), "the flow to stop")

    def restore_flow(self) -> None:
        """Let the standby stream again, and wait until it has caught up."""
        self._stream()
        self.wait_for_standby()

    def make_synchronous(self) -> None:
        """From now on, a commit on this primary waits for the standby. A promoted standby waits for none."""
        self.primary.configure("synchronous_standby_names", STANDBY_NAME)
        _wait(lambda: ("sync",) in self._senders(), "the standby to become synchronous")

    def kill_primary(self) -> None:
        """Send SIGKILL to the primary and all of its sessions, as when its machine is lost."""
        self.primary.kill_family()

    def promote(self) -> None:
        """Make the standby the primary, and wait until it accepts writes. The old primary is left as it is."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def rebuild(self) -> None:
        """Make the old primary a standby of the new one. What only the old one had is gone."""
        self.standby.follow(self.primary)
        self._start_standby()

    def wait_for_standby(self) -> None:
        """Wait until the standby has replayed all that the primary has written by now."""
        ((position,),) = self.primary.execute("SELECT pg_current_wal_flush_lsn()")
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
        _wait(lambda: self.standby.execute(replayed) == [(True,)], "the standby to catch up")

    def close(self) -> None:
        """Stop and remove both servers."""
        for server in self._servers:
            server.close()

    def _start_standby(self) -> None:
        self.standby.start()
        self._stream()

    def _stream(self) -> None:
        source = f"host=127.0.0.1 port={self.primary.port} user={USER} application_name={STANDBY_NAME}"
        self.standby.configure("primary_conninfo", source)
        self.standby.configure("synchronous_standby_names", "")  # a copy has this setting of the server copied
        _wait(lambda: ("sync",) in self._senders() or ("async",) in self._senders(), "the standby to stream")

    def _senders(self) -> list[tuple[str]]:
        """Return the kind of replication of each standby that streams: ``async`` or ``sync``."""
        query = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming' AND application_name"
        return [(state,) for (state,) in self.primary.execute(f"{query} = '{STANDBY_NAME}'")]


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {TIMEOUT_SECONDS} s for {what}")
        time.sleep(0.01)


@contextmanager
def own_cluster(binaries: Path, *, fsync: bool = False) -> Iterator[PostgresCluster]:
    """Start both servers; stop and remove them at the end."""
    cluster = PostgresCluster(binaries, fsync=fsync)
    try:
        yield cluster
    finally:
        cluster.close()
