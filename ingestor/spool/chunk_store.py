"""The spool's file: chunks of entries and the counters that must survive, in SQLite. Knows nothing of loops or threads.

Entries are stored some hundreds to a row, one msgpack text per chunk: far cheaper than a row per entry.
``synchronous=FULL``, since WAL with NORMAL lost every acknowledged commit in a simulated power cut. One connection
writes and checkpoints, all others are read-only (SQLite before 3.51.3 has a race between two that do).
"""

from __future__ import annotations

import secrets
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ingestor.core.entries import Entry, Fact, Frame, Source
from ingestor.core.files import sync_folder
from ingestor.errors import SpoolFailed

FORMAT = 2  # 1 had frames one by one, which are read as well
_SCHEMA = """
CREATE TABLE IF NOT EXISTS head (
    format INTEGER NOT NULL, spool_id TEXT NOT NULL, next_seq INTEGER NOT NULL, acked INTEGER NOT NULL,
    live_bytes INTEGER NOT NULL, heartbeat_us INTEGER, heartbeat_seq INTEGER
);
CREATE TABLE IF NOT EXISTS chunks (
    first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, size INTEGER NOT NULL, crc INTEGER NOT NULL,
    body BLOB NOT NULL
);
"""


class FrameRun(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Frames of one connection that follow each other: their names are stored, and made, once."""

    connection_id: str
    source: Source
    event: str
    path: str
    params: str
    received_us: list[int]
    texts: list[str]

    def takes(self, frame: Frame) -> bool:
        return (
            frame.connection_id == self.connection_id
            and frame.event == self.event
            and frame.source == self.source
            and frame.path == self.path
            and frame.params == self.params
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[FrameRun | Frame | Fact]).decode

ChunkRow: TypeAlias = tuple[int, int, int, int, bytes]


class DiskFull(SpoolFailed):
    """There is no room for this write, and nothing of it was done. Free some and try the same again."""


class SpoolUnreadable(SpoolFailed):
    """What is in the file is not what was written. Set it aside (never delete it) and begin a new spool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolHeader:
    """The counters of a spool. They never fall, not even when it is empty."""

    spool_id: str
    next_seq: int = 1
    acked: int = 0  # every entry up to here is in the database
    live_bytes: int = 0  # of the chunks that are not acknowledged
    heartbeat_us: int | None = None  # all that was received before this stamp …
    heartbeat_seq: int | None = None  # … has a seq up to this one


def pack(first_seq: int, entries: Sequence[Frame | Fact]) -> ChunkRow:
    items = _items(entries)
    try:
        body = _encode(items)
    except UnicodeEncodeError:  # a lone surrogate, which no UTF-8 can hold
        body = _encode(_encodable(msgspec.to_builtins(items)))
    return first_seq, first_seq + len(entries) - 1, len(body), zlib.crc32(body), body


def _items(entries: Iterable[Frame | Fact]) -> list[FrameRun | Frame | Fact]:
    """The same with frames brought together in runs, but for those that try a letter again."""
    items: list[FrameRun | Frame | Fact] = []
    run: FrameRun | None = None
    for one in entries:
        if type(one) is not Frame or one.retry_of is not None:
            items.append(one)
            run = None
            continue
        if run is None or not run.takes(one):
            run = FrameRun(one.connection_id, one.source, one.event, one.path, one.params, [], [])
            items.append(run)
        run.received_us.append(one.received_us)
        run.texts.append(one.text)
    return items


def _entries(items: Iterable[FrameRun | Frame | Fact]) -> Iterator[Frame | Fact]:
    for item in items:
        if not isinstance(item, FrameRun):
            yield item
            continue
        connection_id, source, event, path, params, stamps, texts = msgspec.structs.astuple(item)
        for received_us, text in zip(stamps, texts, strict=True):
            yield Frame(received_us, connection_id, source, event, path, params, text)


def _encodable(value: Any) -> Any:
    """The same with every lone surrogate as its escape, ``\\ud800``."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def unpack(row: ChunkRow) -> list[Entry]:
    first_seq, last_seq, _, crc, body = row
    if zlib.crc32(body) != crc:
        raise SpoolUnreadable(f"spool entries {first_seq} to {last_seq}: checksum differs, the disk changed them")
    try:
        return list(enumerate(_entries(_decode(body)), first_seq))
    except (msgspec.MsgspecError, ValueError) as error:
        raise SpoolUnreadable(f"spool entries {first_seq} to {last_seq}: {error}") from error


class ChunkWriter:
    """The writing end. Every method is one transaction, durable when it returns, or raises SpoolFailed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self.head = self._recover()
        except sqlite3.Error as error:
            self._db.close()
            raise _translated(error, path) from error
        except SpoolFailed:
            self._db.close()
            raise

    def _recover(self) -> SpoolHeader:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA wal_autocheckpoint=4000")  # 16 MB: a checkpoint fsyncs the file itself
        self._db.executescript(_SCHEMA)
        row = self._db.execute("SELECT * FROM head").fetchone()
        if row is None:
            return self._begin()
        found, *counters = row
        if found not in range(1, FORMAT + 1):
            raise SpoolUnreadable(f"{self.path}: format {found}, this program knows {FORMAT}")
        spool_id, next_seq, acked, live_bytes, heartbeat_us, heartbeat_seq = counters
        self._verify(next_seq)
        return SpoolHeader(
            spool_id=spool_id,
            next_seq=next_seq,
            acked=acked,
            live_bytes=live_bytes,
            heartbeat_us=heartbeat_us,
            heartbeat_seq=heartbeat_seq,
        )

    def _begin(self) -> SpoolHeader:
        head = SpoolHeader(spool_id=secrets.token_hex(16))
        self._db.execute("INSERT INTO head VALUES (?, ?, 1, 0, 0, NULL, NULL)", (FORMAT, head.spool_id))
        sync_folder(self.path.parent)
        return head

    def _verify(self, next_seq: int) -> None:
        """The oldest and the newest chunk must be readable, and the newest must end where the counter says."""
        ends = (
            "SELECT * FROM chunks WHERE first_seq IN"
            " (SELECT min(first_seq) FROM chunks UNION SELECT max(first_seq) FROM chunks)"
        )
        rows = self._db.execute(ends).fetchall()
        for row in rows:
            unpack(row)
        newest = max((row[1] for row in rows), default=next_seq - 1)
        if newest != next_seq - 1:
            raise SpoolUnreadable(f"{self.path}: newest entry is {newest}, its counter says {next_seq - 1}")

    def write(
        self,
        chunks: Iterable[ChunkRow],
        *,
        acked: int,
        heartbeat: tuple[int, int] | None = None,
        spool_id: str | None = None,
    ) -> None:
        """Add chunks, forget what was acknowledged, move the counters and change the name, all or nothing."""
        rows = list(chunks)
        head = self.head
        added = sum(row[2] for row in rows)
        heartbeat_us, heartbeat_seq = heartbeat or (head.heartbeat_us, head.heartbeat_seq)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", rows)
            freed = self._forget(head.acked, acked)
            head = replace(
                head,
                spool_id=spool_id or head.spool_id,
                next_seq=rows[-1][1] + 1 if rows else head.next_seq,
                acked=max(acked, head.acked),
                live_bytes=head.live_bytes + added - freed,
                heartbeat_us=heartbeat_us,
                heartbeat_seq=heartbeat_seq,
            )
            self._db.execute(
                "UPDATE head SET format = ?, spool_id = ?, next_seq = ?, acked = ?, live_bytes = ?, heartbeat_us = ?,"
                " heartbeat_seq = ?",
                (FORMAT, head.spool_id, head.next_seq, head.acked, head.live_bytes, heartbeat_us, heartbeat_seq),
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            failure = _translated(error, self.path)
            if isinstance(failure, DiskFull) and self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # Else no retry on this handle: after a failed fsync the kernel may drop the pages and say yes next time.
            raise failure from error
        self.head = head

    def _forget(self, known: int, acked: int) -> int:
        if acked <= known:
            return 0
        # By both ends: only the first has an index, and without it each acknowledgement would read the whole backlog.
        freed: int = self._db.execute(
            "SELECT coalesce(sum(size), 0) FROM chunks WHERE first_seq <= ? AND last_seq <= ?", (acked, acked)
        ).fetchone()[0]
        self._db.execute("DELETE FROM chunks WHERE first_seq <= ? AND last_seq <= ?", (acked, acked))
        return freed

    def close(self) -> None:
        self._db.close()


class ChunkReader:
    """The reading end: its own read-only connection, so that a long read never holds up an append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)

    def read(self, after: int, *, max_entries: int, max_bytes: int) -> list[Entry]:
        """The oldest durable entries past ``after``: bounded in number and bytes, but one chunk if there is any."""
        entries: list[Entry] = []
        size = 0
        query = (
            "SELECT * FROM chunks WHERE last_seq > ? AND first_seq >="
            " coalesce((SELECT max(first_seq) FROM chunks WHERE first_seq <= ?), 0) ORDER BY first_seq"
        )
        try:
            rows = self._db.execute(query, (after, after + 1))
            for row in rows:
                if entries and (size + row[2] > max_bytes or len(entries) >= max_entries):
                    break
                size += row[2]
                entries += unpack(row)
            rows.close()  # an open cursor would hold the snapshot, and the log could not be checkpointed
        except sqlite3.Error as error:
            raise _translated(error, self._path) from error
        return entries if entries and entries[0][0] > after else [entry for entry in entries if entry[0] > after]

    def first_seq(self) -> int | None:
        row = self._db.execute("SELECT min(first_seq) FROM chunks").fetchone()
        return None if row is None else row[0]

    def close(self) -> None:
        self._db.close()


def _translated(error: sqlite3.Error, path: Path) -> SpoolFailed:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return SpoolUnreadable(f"{path}: {error}")
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{path}: the disk is full")
    return SpoolFailed(
        f"{path}: {error}. Look at the disk (space, health, permissions); nothing after the last sync counts"
    )
