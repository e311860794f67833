"""The spool's SQLite file: chunks of entries, and the counters that must survive. Knows nothing of loops or threads.

A chunk is one row with hundreds of entries in msgpack, which is far cheaper than a row per entry. ``synchronous=FULL``
is required: with NORMAL, a simulated power cut lost every acknowledged commit in the WAL. Only one connection writes
and checkpoints (SQLite before 3.51.3 has a race between two); all others are read-only.
"""

from __future__ import annotations

import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ingestor.core.clock import boot_id
from ingestor.core.entries import (
    Entry,
    Fact,
    Frame,
    FrameRun,
    Item,
    SpooledItem,
    count_entries,
    items_after,
    split_into_entries,
)
from ingestor.core.files import is_missing, sync_folder
from ingestor.errors import SpoolFailed, SpoolTooNew
from ingestor.spool.header import SpoolHeader, SpoolHeartbeat, begin_run, check_format, load_or_create
from ingestor.spool.keep import KEEP_NOTHING, AckTimes, Keep, SpoolClock
from ingestor.spool.window_texts import WindowPacker, WindowRun, WindowUnpacker

DROP_BYTES = 16 << 20  # that one write deletes at most, and one chunk: a write must not take seconds
SHRINK_PAGES = 2_048  # moved in one transaction: 8 MiB, so that the WAL stays smaller than the ballast
CONVERT_BYTES = 32 << 20  # a file from before format 4 that is larger is not converted so that it can shrink


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Item | WindowRun]).decode

ChunkRow: TypeAlias = tuple[int, int, int, int, bytes]  # first_seq, last_seq, size, crc, body

_ZLIB = 0x78  # the first byte of a compressed body; that of an array in msgpack is another
MIN_COMPRESSED_BYTES = 512  # a smaller chunk does not get much smaller
# 1 % of a core: 30,000 frames with one row are compressed in that time, or 1,000 with sixty. What there is no time for
# stays as it is.
COMPRESS_SECONDS = 0.05  # of processor time, for each heartbeat
COMPRESS_SLICE_SECONDS = 0.01  # in one write, and one chunk: entries wait for it


class DiskFull(SpoolFailed):
    """The disk has no space for this write, and nothing was written. Free some space and repeat it."""


class SpoolUnreadable(SpoolFailed):
    """The file does not hold what was written. Quarantine it (never delete it) and create a new spool."""


def pack(first_seq: int, entries: Iterable[Item]) -> ChunkRow:
    """Encode entries as one chunk. Lone surrogates become escapes."""
    items = _group_into_runs(entries)
    count = sum(map(count_entries, items))
    try:
        body = _encode(_pack_windows(items))
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot encode
        body = _encode(_encodable(msgspec.to_builtins(items)))
    return first_seq, first_seq + count - 1, len(body), zlib.crc32(body), body


def _group_into_runs(entries: Iterable[Item]) -> list[Item]:
    """Replace consecutive frames and runs by runs, except frames that retry a dead letter."""
    items: list[Item] = []
    run: FrameRun | None = None
    for entry in entries:
        if isinstance(entry, Fact) or (isinstance(entry, Frame) and entry.retry_of is not None):
            items.append(entry)
            run = None
            continue
        if run is None or not run.continues_with(entry):
            run = FrameRun(entry.connection_id, entry.source, entry.event, entry.path, entry.params, [], [])
            items.append(run)
        if isinstance(entry, FrameRun):
            run.received_us.extend(entry.received_us)
            run.texts.extend(entry.texts)
        else:
            run.received_us.append(entry.received_us)
            run.texts.append(entry.text)
    return items


def _pack_windows(items: Iterable[Item]) -> list[Item | WindowRun]:
    packer = WindowPacker()
    return [packer.pack(item) if isinstance(item, FrameRun) else item for item in items]


def _encodable(value: Any) -> Any:
    """Return a copy in which every lone surrogate is its escape, ``\\ud800``."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def compress(row: ChunkRow) -> ChunkRow:
    """Compress a chunk, unless it is already, or would not get smaller. Raises SpoolUnreadable."""
    first_seq, last_seq, size, _, body = _checked(row)
    if size < MIN_COMPRESSED_BYTES or body[0] == _ZLIB:
        return row
    smaller = zlib.compress(body, 1)
    return (first_seq, last_seq, len(smaller), zlib.crc32(smaller), smaller) if len(smaller) < size else row


def expand(row: ChunkRow) -> ChunkRow:
    """Return a chunk as it was before it was compressed, if it was. Raises SpoolUnreadable."""
    first_seq, last_seq, _, _, body = _checked(row)
    if body[:1] != bytes([_ZLIB]):
        return row
    try:
        body = zlib.decompress(body)
    except zlib.error as error:
        raise SpoolUnreadable(f"spool entries {first_seq} to {last_seq}: {error}") from error
    return first_seq, last_seq, len(body), zlib.crc32(body), body


def _checked(row: ChunkRow) -> ChunkRow:
    first_seq, last_seq, _, crc, body = row
    if zlib.crc32(body) != crc:
        raise SpoolUnreadable(f"spool entries {first_seq} to {last_seq}: checksum differs, the disk changed them")
    return row


def unpack(row: ChunkRow) -> list[Entry]:
    """Decode a chunk. Raises SpoolUnreadable."""
    return list(split_into_entries(_decode_items(expand(row))[0]))


def _decode_items(row: ChunkRow) -> tuple[list[SpooledItem], int]:
    """Return the items of a chunk that is not compressed, and about how many bytes they are."""
    first_seq, last_seq, size, _, body = row
    items: list[SpooledItem] = []
    seq, unpacker = first_seq, WindowUnpacker()
    try:
        for stored in _decode(body):
            item = unpacker.unpack(stored) if isinstance(stored, WindowRun) else stored
            items.append((seq, item))
            seq += count_entries(item)
            if isinstance(item, FrameRun) and not 0 < len(item.texts) == len(item.received_us):
                raise ValueError("a run without as many times as texts")
    except (msgspec.MsgspecError, ValueError) as error:
        raise SpoolUnreadable(f"spool entries {first_seq} to {last_seq}: {error}") from error
    return items, size + unpacker.repeated_characters


def newest_entry(path: Path) -> int:
    """Return the newest seq that SQLite finds in a spool that no process has open, and leave its WAL as it is.

    0 if there is none, or if the file cannot be read. Raises SpoolTooNew.
    """
    if not path.stat().st_size:
        return 0  # even a reader would delete the WAL of an empty file
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT format FROM head").fetchone()
        if found:
            check_format(found[0], str(path))  # first: a newer one may have other columns
            return int(db.execute("SELECT next_seq - 1 FROM head").fetchone()[0])
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
        self._compressor = _Compressor(self._db, self.found.acked)
        self._has_more_to_tidy = True

    def _recover(self, released: bool) -> None:
        if is_missing(self.path) or not self.path.stat().st_size:
            self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=OFF")  # Debian's default writes every freed page, with zeros
        # 4 MiB: a checkpoint fsyncs the file itself, but until the first one each sync lengthens the WAL, which takes
        # 0.34 instead of 0.29 ms of processor time.
        self._db.execute("PRAGMA wal_autocheckpoint=1000")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self.found = load_or_create(self._db, released=released)
        except (ValueError, TypeError) as error:
            raise SpoolUnreadable(f"{self.path}: {error}") from error
        self._verify(self.found)
        self.header, self.run_id, self.left_by = begin_run(self._db, self.found)
        self._db.execute("COMMIT")
        sync_folder(self.path.parent)
        self._convert()

    def _convert(self) -> None:
        """Let a small file from before format 4 shrink from now on. Without space for that it stays as it is."""
        used_bytes = (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")
        if self.can_shrink or used_bytes > CONVERT_BYTES:
            return
        self._db.execute("PRAGMA temp_store=MEMORY")
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        try:
            self._db.execute("VACUUM")
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise

    @property
    def can_shrink(self) -> bool:
        """Whether free pages can be returned to the file system. Not in a large file from before format 4."""
        return self._pragma("auto_vacuum") == 2

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

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
            # Most writes only add entries, between two commits of the database: they need not look for what to drop.
            if acked > header.acked or heartbeat or not rows or self._has_more_to_tidy:
                header = self._tidy(header, max(acked, header.acked), held_from, heartbeat)
            header.save(self._db, with_heartbeat=heartbeat is not None)
        self.header = header

    def _tidy(self, header: SpoolHeader, acked: int, held_from: int, heartbeat: SpoolHeartbeat | None) -> SpoolHeader:
        """Count what is acknowledged, and drop or compress some of it."""
        header = self._acknowledge(header, acked)
        if heartbeat and not self._keep.nothing:
            header = header._replace(used_ms=self._clock.used_ms(heartbeat.boottime))
            self._ack_times.note(header.used_ms, header.acked)
        tidied = self._drop_excess(header, held_from)
        if not self._keep.nothing:
            tidied = self._compressor.step(tidied, refill=heartbeat is not None)
        self._has_more_to_tidy = tidied.kept_bytes != header.kept_bytes
        return tidied

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

    def give_back(self, acked: int) -> bool:
        """Drop the oldest acknowledged chunks, up to DROP_BYTES, and return as much to the file system, if possible.

        Returns whether there was anything to drop or return. Raises SpoolFailed.
        """
        with self._translated():
            if acked <= self.header.acked and not self.header.kept_bytes and not self._returnable_pages:
                return False
            self._checkpoint()  # after it, the WAL is overwritten from its start instead of growing
            with self._transaction():
                acknowledged = self._acknowledge(self.header, max(acked, self.header.acked))
                header = self._drop_oldest(acknowledged, acknowledged.acked, lambda _seq, _bytes: True)
                header.save(self._db, with_heartbeat=False)
            self.header = header
            returned = self._shrink(DROP_BYTES // self._pragma("page_size"))
        return returned or header.kept_bytes < acknowledged.kept_bytes

    @property
    def _returnable_pages(self) -> int:
        return self._pragma("freelist_count") if self.can_shrink else 0

    def _shrink(self, pages: int) -> bool:
        """Move the last pages of the file into free ones, and cut it. Returns False if that is not possible."""
        if not self._returnable_pages:
            return False
        for _ in range(0, pages, SHRINK_PAGES):
            # ``execute`` would only do the first page: the statement returns a row without columns for each.
            self._db.executescript(f"PRAGMA incremental_vacuum({SHRINK_PAGES})")
            self._checkpoint()
        return True

    def _checkpoint(self) -> None:
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            if not isinstance(_translate(error, self.path), DiskFull):
                raise  # after a failed fsync, a later checkpoint might take for written what is not

    def update(self, **changes: Any) -> None:
        """Change fields of the header that depend on no chunk."""
        with self._transaction():
            header = self.header._replace(**changes)
            header.save(self._db, with_heartbeat=False)
        self.header = header
        self._has_more_to_tidy = True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
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
        gone, most_bytes = max(self._ack_times.expired, header.forgotten), self._keep.size_bytes
        return self._drop_oldest(
            header,
            min(header.acked, held_from - 1),
            lambda last_seq, kept_bytes: last_seq <= gone or kept_bytes > most_bytes,
        )

    def _drop_oldest(self, header: SpoolHeader, upto_seq: int, is_excess: Callable[[int, int], bool]) -> SpoolHeader:
        """Drop chunks up to ``upto_seq`` as long as ``is_excess`` (last_seq, kept bytes), but few at a time."""
        oldest, dropped_bytes, dropped_seq = self._oldest(upto_seq), 0, 0
        for last_seq, size in oldest:
            if dropped_bytes >= DROP_BYTES or not is_excess(last_seq, header.kept_bytes - dropped_bytes):
                break
            dropped_bytes, dropped_seq = dropped_bytes + size, last_seq
        oldest.close()
        if dropped_seq:
            self._db.execute("DELETE FROM chunks WHERE first_seq <= ?", (dropped_seq,))
        return header._replace(kept_bytes=header.kept_bytes - dropped_bytes)

    def _oldest(self, upto_seq: int) -> Generator[tuple[int, int], None, None]:
        """Yield (last_seq, size) of the chunks that end up to ``upto_seq``."""
        query = "SELECT last_seq, size FROM chunks WHERE first_seq <= ? ORDER BY first_seq"
        with closing(self._db.execute(query, (upto_seq,))) as rows:
            for last_seq, size in rows:
                if last_seq > upto_seq:
                    return
                yield last_seq, size

    def close(self) -> None:
        self._db.close()


class _Compressor:
    """Compresses chunks after they are acknowledged, the newest of them, as far as there is time."""

    def __init__(self, db: sqlite3.Connection, acked: int) -> None:
        self._db = db
        self._done_upto = acked  # or left as it is
        self._acked_before = acked  # at the last heartbeat
        self._seconds = 0.0  # processor time that is left until the next heartbeat

    def step(self, header: SpoolHeader, *, refill: bool) -> SpoolHeader:
        """Compress some chunks. Call in a transaction, with ``refill`` at a heartbeat."""
        if refill:
            # Without time for all of them the newest are compressed: they are dropped last.
            self._done_upto = max(self._done_upto, self._acked_before)
            self._acked_before, self._seconds = header.acked, COMPRESS_SECONDS
        saved_bytes, started = 0, time.thread_time()
        ends = started + min(self._seconds, COMPRESS_SLICE_SECONDS)
        while time.thread_time() < ends and (row := self._next(header.acked)):
            saved_bytes += self._compress(row)
        self._seconds -= time.thread_time() - started
        return header._replace(kept_bytes=header.kept_bytes - saved_bytes)

    def _next(self, acked: int) -> ChunkRow | None:
        query = "SELECT * FROM chunks WHERE first_seq > ? AND first_seq <= ? ORDER BY first_seq LIMIT 1"
        row: ChunkRow | None = self._db.execute(query, (self._done_upto, acked)).fetchone()
        return row if row and row[1] <= acked else None

    def _compress(self, row: ChunkRow) -> int:
        """Return the bytes that were saved."""
        first_seq, self._done_upto, size, *_ = row
        try:
            smaller = compress(row)
        except SpoolUnreadable:
            return 0  # it is in the database; only if that goes back, it is a loss
        if smaller is row:
            return 0
        self._db.execute(
            "UPDATE chunks SET (size, crc, body) = (?, ?, ?) WHERE first_seq = ?", (*smaller[2:], first_seq)
        )
        return size - smaller[2]


class ChunkReader:
    """A read-only connection of its own, so that a long read does not delay an append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)

    def read_items(self, after_seq: int, *, max_entries: int, max_bytes: int) -> list[SpooledItem]:
        """Return the oldest durable entries past ``after_seq``: within both bounds, but at least one chunk."""
        items: list[SpooledItem] = []
        size = entries = 0
        query = (
            "SELECT * FROM chunks WHERE last_seq > ? AND first_seq >="
            " coalesce((SELECT max(first_seq) FROM chunks WHERE first_seq <= ?), 0) ORDER BY first_seq"
        )
        try:
            rows = self._db.execute(query, (after_seq, after_seq + 1))
            for row in rows:
                if items and (size + row[2] > max_bytes or entries >= max_entries):
                    break  # before the chunk is expanded: it may be damaged, and those before it are to be written
                chunk_items, chunk_size = _decode_items(expand(row))
                size += chunk_size
                items += chunk_items
                entries += row[1] - row[0] + 1
            rows.close()  # an open cursor holds its snapshot, and the WAL could not be checkpointed
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error
        return list(items_after(after_seq, items))

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
