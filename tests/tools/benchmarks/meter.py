"""Measure what all parties use: wall time, processor time, disk."""

from __future__ import annotations

import time

from tests.support.process_usage import family_cpu_seconds
from tests.tools.benchmarks.committed_rows import CommittedRows
from tests.tools.benchmarks.environment import Environment

# The names of figures.
CLIENT, DATABASE, BOTH, BYTES = "µs client", "µs database", "µs both sides", "bytes on disk"


class Meter:
    """Counts from its creation on.

    Client is the measured program. Database is all processes of PostgreSQL but the one that serves ``tables``; SQLite
    works inside the client.
    """

    def __init__(self, environment: Environment, tables: CommittedRows, *client_pids: int) -> None:
        self._environment = environment
        self._tables = tables
        self._client_pids = client_pids
        self._bytes_before = self._size_bytes()
        self._before = self._clocks()

    def seconds(self) -> tuple[float, float, float]:
        """Return the wall time so far, and the processor time of the client and of the database."""
        wall, client, database = (now - before for now, before in zip(self._clocks(), self._before, strict=True))
        return wall, client, database

    def figures(self, units: int) -> dict[str, float]:
        """Return the units per second of wall time, and what one unit took."""
        wall, client, database = (seconds / units for seconds in self.seconds())
        figures = {"": 1 / wall, CLIENT: 1e6 * client}
        if self._environment.server_pid:
            figures |= {DATABASE: 1e6 * database, BOTH: 1e6 * (client + database)}
        if self._environment.database_url:
            figures[BYTES] = (self._size_bytes() - self._bytes_before) / units
        return figures

    def _size_bytes(self) -> int:
        return self._tables.size_bytes() if self._environment.database_url else 0

    def _clocks(self) -> tuple[float, float, float]:
        wall, server_pid = time.monotonic(), self._environment.server_pid
        client = sum(map(family_cpu_seconds, self._client_pids))
        database = family_cpu_seconds(server_pid, {self._tables.backend_pid}) if server_pid else 0.0
        return wall, client, database
