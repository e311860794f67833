"""What a spool says about itself: the one row of its table ``head``, and the runs that have opened it."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

FORMAT = 3
KNOWN_RUNS = 1_000  # that a spool remembers at least

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS chunks (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL,"
    " size INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS runs (number INTEGER PRIMARY KEY, run_id TEXT NOT NULL, opened_head INTEGER NOT NULL)",
    "DROP TABLE IF EXISTS head",
    "CREATE TABLE head (format INTEGER NOT NULL, spool_id TEXT NOT NULL, next_seq INTEGER NOT NULL,"
    " acked INTEGER NOT NULL, live_bytes INTEGER NOT NULL, heartbeat TEXT, clean INTEGER NOT NULL)",
)

_FORGET_RUNS = (
    "DELETE FROM runs WHERE number <= (SELECT max(number) FROM runs) - ?"
    " AND number < (SELECT max(number) FROM runs WHERE opened_head < ?)"
)


class SpoolHeartbeat(NamedTuple):
    """Everything that was received before ``at_us`` has a seq up to ``seq``, and is durable."""

    at_us: int  # µs since the epoch, by the wall clock
    seq: int
    # When the connection in use of each group (path, shared params) with live subscriptions was last heard, like at_us.
    heard_us: Mapping[tuple[str, str], int]
    boottime: float  # at the same moment, seconds since the machine started; tells the next run how long it was down …
    boot_id: str  # … if the machine was not started again meanwhile

    def to_text(self) -> str:
        return json.dumps([*self[:2], [[*group, at_us] for group, at_us in self.heard_us.items()], *self[3:]])

    @classmethod
    def from_text(cls, text: str) -> SpoolHeartbeat:
        """Raises ValueError."""
        at_us, seq, heard, boottime, boot_id = json.loads(text)
        return cls(at_us, seq, {(path, params): heard_us for path, params, heard_us in heard}, boottime, boot_id)


class SpoolHeader(NamedTuple):
    """The counters of a spool. They never fall, even when it is empty."""

    spool_id: str
    next_seq: int = 1
    acked: int = 0  # every entry up to here is in the database
    live_bytes: int = 0  # of the chunks that are not acknowledged
    heartbeat: SpoolHeartbeat | None = None
    clean: bool = True  # the run that wrote last came to its end, or there was none

    def save(self, db: sqlite3.Connection, *, with_heartbeat: bool) -> None:
        """Update the row. The heartbeat costs the most and changes every few seconds only."""
        counters = "UPDATE head SET (spool_id, next_seq, acked, live_bytes, clean) = (?, ?, ?, ?, ?)"
        db.execute(counters, (*self[:4], self.clean))
        if with_heartbeat and self.heartbeat:
            db.execute("UPDATE head SET heartbeat = ?", (self.heartbeat.to_text(),))


def load_or_create(db: sqlite3.Connection, *, released: bool) -> SpoolHeader:
    """Return the header; create or upgrade the tables first. Must be called in a transaction.

    ``released`` is what the lock file says of the last run's end: format 2 has no other proof.
    Raises ValueError if it is no header of a format that this program reads.
    """
    row = _row(db)
    if row is not None and row[0] == FORMAT:
        heartbeat, clean = row[5:]
        return SpoolHeader._make((*row[1:5], heartbeat and SpoolHeartbeat.from_text(heartbeat), bool(clean)))
    if row is None:
        header = SpoolHeader(spool_id=secrets.token_hex(16))
    elif row[0] == 2:
        heartbeat_us, heartbeat_seq = row[5:]
        heartbeat = None if heartbeat_us is None else SpoolHeartbeat(heartbeat_us, heartbeat_seq, {}, 0.0, "")
        header = SpoolHeader._make((*row[1:5], heartbeat, released))
    else:
        raise ValueError(f"format {row[0]}, this program reads formats 2 and {FORMAT}")
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute("INSERT INTO head VALUES (?, '', 1, 0, 0, NULL, 0)", (FORMAT,))
    header.save(db, with_heartbeat=True)
    return header


def _row(db: sqlite3.Connection) -> tuple[Any, ...] | None:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'head'").fetchone() is None:
        return None
    row: tuple[Any, ...] | None = db.execute("SELECT * FROM head").fetchone()
    return row


def begin_run(db: sqlite3.Connection, header: SpoolHeader) -> tuple[SpoolHeader, str, dict[str, int]]:
    """Record a new run, which has no clean end yet.

    Return the header, the run's id, and what each earlier run that is known has left: its id → its newest seq. The
    empty id is that of older programs.
    """
    run_id = secrets.token_hex(16)
    db.execute("INSERT INTO runs (run_id, opened_head) VALUES (?, ?)", (run_id, header.next_seq - 1))
    # Never the last one that has written to the database: all since then may have ended without it.
    db.execute(_FORGET_RUNS, (KNOWN_RUNS, header.acked))
    header = header._replace(clean=False)
    header.save(db, with_heartbeat=False)
    runs = db.execute("SELECT run_id, opened_head FROM runs ORDER BY number").fetchall()
    left = {before: head for (before, _), (_, head) in pairwise([("", 0), *runs])}
    return header, run_id, left
