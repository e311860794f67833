"""What a spool says about itself: the one row of its table ``head``, and the runs that have opened it."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from ingestor.errors import SpoolTooNew

FORMAT = 5  # 4 has each text as a whole
_OLDEST_FORMAT = 2
KNOWN_RUNS = 1_000  # that a spool remembers at least

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS chunks (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL,"
    " size INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS runs (number INTEGER PRIMARY KEY, run_id TEXT NOT NULL, opened_head INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS ack_times (at_ms INTEGER PRIMARY KEY, acked INTEGER NOT NULL)",
    "DROP TABLE IF EXISTS head",
    "CREATE TABLE head (format INTEGER NOT NULL, spool_id TEXT NOT NULL, next_seq INTEGER NOT NULL,"
    " acked INTEGER NOT NULL, live_bytes INTEGER NOT NULL, heartbeat TEXT, clean INTEGER NOT NULL,"
    " highest_acked INTEGER NOT NULL, kept_bytes INTEGER NOT NULL, forgotten INTEGER NOT NULL,"
    " used_ms INTEGER NOT NULL, server TEXT)",
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
    """The counters of a spool. They never fall, even when it is empty; only a rewind lowers ``acked``.

    A chunk counts as live until its last entry is acknowledged for the first time, and as kept from when its last
    entry is acknowledged until it is dropped. One that is to be written again counts as neither.
    """

    spool_id: str
    next_seq: int = 1
    acked: int = 0  # every entry up to here is in the database
    live_bytes: int = 0  # of the chunks that were never acknowledged
    heartbeat: SpoolHeartbeat | None = None
    clean: bool = True  # the run that wrote last came to its end, or there was none
    highest_acked: int = 0  # every entry up to here was in a database once
    kept_bytes: int = 0  # of the chunks that are acknowledged
    forgotten: int = 0  # every entry up to here may be gone, and must not be written again
    used_ms: int = 0  # see SpoolClock; at the heartbeat
    server: tuple[str, int] | None = None  # the newest PostgreSQL server written to: system identifier, timeline

    def save(self, db: sqlite3.Connection, *, with_heartbeat: bool) -> None:
        """Update the row. The heartbeat costs the most and changes every few seconds only."""
        counters = (
            "UPDATE head SET (spool_id, next_seq, acked, live_bytes, clean, highest_acked, kept_bytes, forgotten,"
            " used_ms, server) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        db.execute(counters, (*self[:4], self.clean, *self[6:10], _server_text(self.server)))
        if with_heartbeat and self.heartbeat:
            db.execute("UPDATE head SET heartbeat = ?", (self.heartbeat.to_text(),))


@lru_cache(maxsize=1)  # each write of the spool has the same
def _server_text(server: tuple[str, int] | None) -> str | None:
    return server and json.dumps(server)


def check_format(found: int, file: str) -> None:
    """Raise SpoolTooNew if a newer program wrote this format."""
    if found > FORMAT:
        raise SpoolTooNew(
            f"{file}: a newer version wrote format {found}, this one reads formats {_OLDEST_FORMAT} to {FORMAT};"
            " upgrade the program, or set spool.path to another folder"
        )


def load_or_create(db: sqlite3.Connection, *, released: bool) -> SpoolHeader:
    """Return the header; create or upgrade the tables first. Must be called in a transaction.

    ``released`` is what the lock file says of the last run's end: format 2 has no other proof.
    Raises SpoolTooNew, ValueError if it is no header of a format that this program reads.
    """
    row = _row(db)
    if row is None:
        header = SpoolHeader(spool_id=secrets.token_hex(16))
    else:
        check_format(row[0], "spool.db")
        header = _parse(row, released=released)
        if row[0] == FORMAT:
            return header
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute("INSERT INTO head VALUES (?, '', 1, 0, 0, NULL, 0, 0, 0, 0, 0, NULL)", (FORMAT,))
    header.save(db, with_heartbeat=True)
    return header


def _parse(row: tuple[Any, ...], *, released: bool) -> SpoolHeader:
    """Raises ValueError."""
    spool_id, next_seq, acked, live_bytes = row[1:5]
    header = SpoolHeader(spool_id, next_seq, acked, live_bytes, highest_acked=acked)
    match row:
        case 2, _, _, _, _, heartbeat_us, heartbeat_seq:
            heartbeat = None if heartbeat_us is None else SpoolHeartbeat(heartbeat_us, heartbeat_seq, {}, 0.0, "")
            return header._replace(heartbeat=heartbeat, clean=released)
        case 3 | 4 | 5, _, _, _, _, heartbeat, clean, *later:
            header = header._replace(heartbeat=heartbeat and SpoolHeartbeat.from_text(heartbeat), clean=bool(clean))
            if not later:
                return header
            highest_acked, kept_bytes, forgotten, used_ms, server = later
            counters = (highest_acked, kept_bytes, forgotten, used_ms)
            return SpoolHeader(*header[:6], *counters, server and tuple(json.loads(server)))
    raise ValueError(f"format {row[0]}, this program reads formats {_OLDEST_FORMAT} to {FORMAT}")


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
    # Never one that the database may name: it may go back to where what is kept begins.
    db.execute(_FORGET_RUNS, (KNOWN_RUNS, _lowest_position(db, header)))
    header = header._replace(clean=False)
    header.save(db, with_heartbeat=False)
    runs = db.execute("SELECT run_id, opened_head FROM runs ORDER BY number").fetchall()
    left = {before: head for (before, _), (_, head) in pairwise([("", 0), *runs])}
    return header, run_id, left


def _lowest_position(db: sqlite3.Connection, header: SpoolHeader) -> int:
    """Return the lowest position from which a database can be continued."""
    first_seq = db.execute("SELECT min(first_seq) FROM chunks").fetchone()[0]
    return header.acked if first_seq is None else min(header.acked, max(first_seq - 1, header.forgotten))
