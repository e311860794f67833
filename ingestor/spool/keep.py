"""How long acknowledged entries are kept, and the clock that says when they were acknowledged.

The clock counts the time in which the spool was in use, so a step of the wall clock makes nothing older. It runs on
while the daemon is down only as far as that is proven: within one boot of the machine.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from ingestor.core.clock import boottime
from ingestor.spool.header import SpoolHeader

MIN_POINT_SECONDS = 60.0  # between two points of ``AckTimes``
MAX_POINTS = 1_440


class Keep(NamedTuple):
    """How much of what was acknowledged the spool keeps: up to both limits. If either is 0, nothing."""

    seconds: float = 0.0  # since the acknowledgement
    size_bytes: int = 0

    @property
    def nothing(self) -> bool:
        return self.seconds <= 0 or self.size_bytes <= 0


KEEP_NOTHING = Keep()


class SpoolClock:
    """The time in which a spool was in use, in ms since it was created. Continues with the value in the header."""

    def __init__(self, header: SpoolHeader, boot_id: str) -> None:
        now, last = boottime(), header.heartbeat
        proven = last is not None and last.boot_id == boot_id != "" and last.boottime <= now
        self._started = (last.boottime if last and proven else now) - header.used_ms / 1000  # boottime

    def used_ms(self, at: float) -> int:
        """Return what the clock shows at this boottime."""
        return round((at - self._started) * 1000)


class AckTimes:
    """What was acknowledged when: one point (time, acked) a minute or so, in the spool's file."""

    def __init__(self, db: sqlite3.Connection, keep: Keep) -> None:
        self._db = db
        self._keep_ms = round(keep.seconds * 1000)
        self._interval_ms = round(max(MIN_POINT_SECONDS, keep.seconds / MAX_POINTS) * 1000)
        self.expired = 0  # every entry up to here was acknowledged before ``keep.seconds``

    def note(self, now_ms: int, acked: int) -> None:
        """Add a point if the last one is old enough, and find what has expired. Call in a transaction."""
        last = self._db.execute("SELECT at_ms, acked FROM ack_times ORDER BY at_ms DESC LIMIT 1").fetchone()
        if last is None or (acked > last[1] and now_ms >= last[0] + self._interval_ms):
            self._db.execute("INSERT OR REPLACE INTO ack_times VALUES (?, ?)", (now_ms, acked))
        query = "SELECT at_ms, acked FROM ack_times WHERE at_ms <= ? ORDER BY at_ms DESC LIMIT 1"
        if old := self._db.execute(query, (now_ms - self._keep_ms,)).fetchone():
            self._db.execute("DELETE FROM ack_times WHERE at_ms < ?", (old[0],))
            self.expired = old[1]

    def rewind(self, position: int) -> None:
        """Entries past ``position`` are to be acknowledged again: their age counts from then. Call in a transaction."""
        self._db.execute("UPDATE ack_times SET acked = ? WHERE acked > ?", (position, position))
        self.expired = min(self.expired, position)
