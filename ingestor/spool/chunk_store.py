"""The spool's SQLite file: chunks of entries, and the counters that must survive. Knows nothing of loops or threads.

A chunk is one row with hundreds of entries in msgpack, which is far cheaper than a row per entry. ``synchronous=FULL``
is required: with NORMAL, a simulated power cut lost every acknowledged commit in the WAL. Only one connection writes
and checkpoints (SQLite before 3.51.3 has a race between two); all others are read-only.
"""

from __future__ import annotations

import sqlite3
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ingestor.core.clock import boot_id
from ingestor.core.entries import Entry, Fact, Frame, Source
from ingestor.core.files import sync_folder
from ingestor.errors import SpoolFailed, SpoolTooNew
from ingestor.spool.header import SpoolHeader, SpoolHeartbeat, begin_run, check_format, load_or_create
from ingestor.spool.keep import KEEP_NOTHING, AckTimes, Keep, SpoolClock

DROP_BYTES = 16 << 20  # that one write deletes at most, and one chunk: a write must not take seconds


class FrameRun(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Consecutive frames of one connection: what they have in common is stored and decoded once."""

    connection_id: str
    source: Source
    event: str
    path: str
    params: str
    received_us: list[int]
    texts: list[str]

    def continues_with(self, frame: Frame) -> bool:
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
    """The disk has no space for this write, and nothing was written. Free some space and repeat it."""


class SpoolUnreadable(SpoolFailed):
    """The file does not hold what was written. Quarantine it (never delete it) and create a new spool."""


def pack(first_seq: int, entries: Sequence[Frame | Fact]) -> ChunkRow:
    """Encode entries as one chunk. Lone surrogates become escapes."""
    items = _group_into_runs(entries)
    try:
        body = _encode(items)
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot encode
        body = _encode(_encodable(msgspec.to_builtins(items)))
    return first_seq, first_seq + len(entries) - 1, len(body), zlib.crc32(body), body


def _group_into_runs(entries: Iterable[Frame | Fact]) -> list[FrameRun | Frame | Fact]:
    """Replace consecutive frames by runs, except those that retry a dead letter."""
    items: list[FrameRun | Frame | Fact] = []
    run: FrameRun | None = None
    for entry in entries:
        if type(entry) is not Frame or entry.retry_of is not None:
            items.append(entry)
            run = None
            continue
        if run is None or not run.continues_with(entry):
            run = FrameRun(entry.connection_id, entry.source, entry.event, entry.path, entry.params, [], [])
            items.append(run)
        run.received_us.append(entry.received_us)
        run.texts.append(entry.text)
    return items


def _ungroup(items: Iterable[FrameRun | Frame | Fact]) -> Iterator[Frame | Fact]:
    for item in items:
        if not isinstance(item, FrameRun):
            yield item
            continue
        connection_id, source, event, path, params, stamps, texts = msgspec.structs.astuple(item)
        for received_us, text in zip(stamps, texts, strict=True):
            yield Frame(received_us, connection_id, source, event, path, params, text)


def _encodable(value: Any) -> Any:
    """Return a copy in which every lone surrogate is its escape, ``\\ud800``."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def unpack(row: ChunkRow) -> list[Entry]:
    """Decode a chunk. Raises SpoolUnreadable."""
    first_seq, last_seq, _, crc, body = row
    if zlib.crc32(body) != crc:
        raise SpoolUnreadable(f"spool entries {first_seq} to {last_seq}: checksum differs, the disk changed them")
    try:
        return list(enumerate(_ungroup(_decode(body)), first_seq))
    except (msgspec.MsgspecError, ValueError) as error:
        raise SpoolUnreadable(f"spool entries {first_seq} to {last_seq}: {error}") from error


def newest_entry(path: Path) -> int:
    """Return the newest seq that SQLite finds in a spool that no process has open, and leave its WAL as it is.

    0 if there is none, or if the file cannot be read. Raises SpoolTooNew.
    """
    if not path.stat().st_size:
        return 0  # even a reader would delete the WAL of an empty file
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        found, newest = db.execute("SELECT format, next_seq - 1 FROM head").fetchone() or (0, 0)
        check_format(found, str(path))
        return int(newest)
    return 0


class ChunkWriter:
    """The connection that writes. A write is one transaction, durable when it returns, or raises SpoolFailed."""

    def __init__(self, path: Path, *, keep: Keep = KEEP_NOTHING, released: bool = False) -> None:
        """Open or create the spool, and begin a run of it. ``released``: see ``load_or_create``.

        Raises SpoolFailed, SpoolTooNew.
        """
        self.path = path
        self._keep = KEEP_NOTHING if keep.nothing else keep
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._recover(released)
        except sqlite3.Error as error:
            self._db.close()
            raise _translate(error, path) from error
        except (SpoolFailed, SpoolTooNew):
            self._db.close()
            raise
        self._clock = SpoolClock(self.found, boot_id())
        self._ack_times = AckTimes(self._db, self._keep)

    def _recover(self, released: bool) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA wal_autocheckpoint=4000")  # 16 MB: a checkpoint fsyncs the file itself
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self.found = load_or_create(self._db, released=released)
        except (ValueError, TypeError) as error:
            raise SpoolUnreadable(f"{self.path}: {error}") from error
        self._verify(self.found)
        self.header, self.run_id, self.left_by = begin_run(self._db, self.found)
        self._db.execute("COMMIT")
        sync_folder(self.path.parent)

    def _verify(self, header: SpoolHeader) -> None:
        """Check that the oldest and newest chunks that the database needs are readable, and where the newest ends.

        What is kept is only read after a rewind: until then, damage there is no loss.
        """
        ends = (
            "SELECT * FROM chunks WHERE last_seq > ?1 AND first_seq IN"
            " (SELECT max(first_seq) FROM chunks WHERE first_seq <= ?1 + 1 UNION SELECT max(first_seq) FROM chunks)"
        )
        for row in self._db.execute(ends, (header.acked,)).fetchall():
            unpack(row)
        last = self._db.execute("SELECT last_seq FROM chunks ORDER BY first_seq DESC LIMIT 1").fetchone()
        newest = last[0] if last else header.next_seq - 1
        if newest != header.next_seq - 1:
            raise SpoolUnreadable(f"{self.path}: the newest entry is {newest}, the counter says {header.next_seq - 1}")

    def write(
        self,
        chunks: Iterable[ChunkRow],
        *,
        acked: int,
        held_from: int = sys.maxsize,
        heartbeat: SpoolHeartbeat | None = None,
        clean: bool = False,
    ) -> None:
        """Add chunks, and drop acknowledged ones that are not to be kept, in one transaction: the last if ``clean``.

        Entries from ``held_from`` on are not dropped.
        """
        rows = list(chunks)
        with self._transaction():
            self._db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", rows)
            header = self.header._replace(
                next_seq=rows[-1][1] + 1 if rows else self.header.next_seq,
                live_bytes=self.header.live_bytes + sum(row[2] for row in rows),
                heartbeat=heartbeat or self.header.heartbeat,
                clean=clean,
            )
            header = self._acknowledge(header, max(acked, header.acked))
            if heartbeat and not self._keep.nothing:
                header = header._replace(used_ms=self._clock.used_ms(heartbeat.boottime))
                self._ack_times.note(header.used_ms, header.acked)
            header = self._drop_excess(header, held_from)
            header.save(self._db, with_heartbeat=heartbeat is not None)
        self.header = header

    def rewind(self, position: int) -> bool:
        """Set ``acked`` back to ``position``. Returns False, and changes nothing, if the next entry was dropped."""
        with self._transaction():
            first_seq = self._db.execute("SELECT min(first_seq) FROM chunks").fetchone()[0]
            is_possible = first_seq is not None and position >= max(first_seq - 1, self.header.forgotten)
            header = self.header
            if is_possible:
                header = self._acknowledge(header, position)
                self._ack_times.rewind(position)
                header.save(self._db, with_heartbeat=False)
        self.header = header
        return is_possible

    def update(self, **changes: Any) -> None:
        """Change fields of the header that depend on no chunk."""
        with self._transaction():
            header = self.header._replace(**changes)
            header.save(self._db, with_heartbeat=False)
        self.header = header

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            failure = _translate(error, self.path)
            if isinstance(failure, DiskFull) and self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # Otherwise no retry on this handle: after a failed fsync the kernel may drop the pages and report success.
            raise failure from error

    def _acknowledge(self, header: SpoolHeader, acked: int) -> SpoolHeader:
        """Move ``acked``, forward or back, and count the chunks that it passes."""
        if acked == header.acked:
            return header
        low, high = sorted((acked, header.acked))
        passed_bytes = self._sum_sizes(low, high) * (1 if acked > header.acked else -1)
        highest_acked = max(acked, header.highest_acked)
        first_time_bytes = self._sum_sizes(header.highest_acked, highest_acked)
        return header._replace(
            acked=acked,
            highest_acked=highest_acked,
            kept_bytes=header.kept_bytes + passed_bytes,
            live_bytes=header.live_bytes - first_time_bytes,
        )

    def _sum_sizes(self, after_seq: int, upto_seq: int) -> int:
        """Return the bytes of the chunks whose last entry is in this range. Takes as long as there are such chunks."""
        if upto_seq <= after_seq:
            return 0
        # first_seq is redundant, but it alone has an index: without it each call would read the whole file.
        query = (
            "SELECT coalesce(sum(size), 0) FROM chunks WHERE last_seq > ?1 AND last_seq <= ?2 AND first_seq <= ?2"
            " AND first_seq >= coalesce((SELECT max(first_seq) FROM chunks WHERE first_seq <= ?1 + 1), 0)"
        )
        return int(self._db.execute(query, (after_seq, upto_seq)).fetchone()[0])

    def _drop_excess(self, header: SpoolHeader, held_from: int) -> SpoolHeader:
        """Drop the oldest chunks that are acknowledged, and too many or too old."""
        oldest, dropped_bytes, upto = self._oldest(min(header.acked, held_from - 1)), 0, 0
        gone = max(self._ack_times.expired, header.forgotten)
        for last_seq, size in oldest:
            is_excess = last_seq <= gone or header.kept_bytes - dropped_bytes > self._keep.size_bytes
            if not is_excess or dropped_bytes >= DROP_BYTES:
                break
            dropped_bytes, upto = dropped_bytes + size, last_seq
        oldest.close()
        return self._drop(header, upto, dropped_bytes)

    def _oldest(self, upto_seq: int) -> Generator[tuple[int, int], None, None]:
        """Yield (last_seq, size) of the chunks that end up to ``upto_seq``."""
        query = "SELECT last_seq, size FROM chunks WHERE first_seq <= ? ORDER BY first_seq"
        with closing(self._db.execute(query, (upto_seq,))) as rows:
            for last_seq, size in rows:
                if last_seq > upto_seq:
                    return
                yield last_seq, size

    def _drop(self, header: SpoolHeader, upto_seq: int, size: int) -> SpoolHeader:
        if not upto_seq:
            return header
        self._db.execute("DELETE FROM chunks WHERE first_seq <= ?", (upto_seq,))
        return header._replace(kept_bytes=header.kept_bytes - size)

    def close(self) -> None:
        self._db.close()


class ChunkReader:
    """A read-only connection of its own, so that a long read does not delay an append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)

    def read(self, after_seq: int, *, max_entries: int, max_bytes: int) -> list[Entry]:
        """Return the oldest durable entries past ``after_seq``: within both bounds, but at least one chunk."""
        entries: list[Entry] = []
        size = 0
        query = (
            "SELECT * FROM chunks WHERE last_seq > ? AND first_seq >="
            " coalesce((SELECT max(first_seq) FROM chunks WHERE first_seq <= ?), 0) ORDER BY first_seq"
        )
        try:
            rows = self._db.execute(query, (after_seq, after_seq + 1))
            for row in rows:
                if entries and (size + row[2] > max_bytes or len(entries) >= max_entries):
                    break
                size += row[2]
                entries += unpack(row)
            rows.close()  # an open cursor holds its snapshot, and the WAL could not be checkpointed
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error
        return [entry for entry in entries if entry[0] > after_seq]

    def first_seq(self) -> int | None:
        row = self._db.execute("SELECT min(first_seq) FROM chunks").fetchone()
        return None if row is None else row[0]

    def close(self) -> None:
        self._db.close()


def _translate(error: sqlite3.Error, path: Path) -> SpoolFailed:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return SpoolUnreadable(f"{path}: {error}")
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{path}: the disk is full")
    return SpoolFailed(
        f"{path}: {error}. Check the disk (space, health, permissions); what came after the last sync is not received"
    )
