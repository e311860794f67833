"""The durable first-in-first-out queue between socket and database.

The event loop appends and never waits. The spool's thread writes and fsyncs all entries that have accumulated (group
commit): at once, or ``sync_every`` after it last did. The writer reads and acknowledges from its own thread.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from ingestor.core.clock import boot_id, boottime
from ingestor.core.entries import Entry, Frame, FrameRun, Item, SpooledItem, split_into_entries
from ingestor.core.files import FileLock, check_private, identity, is_missing, open_private
from ingestor.errors import PermissionDenied, SpoolFailed
from ingestor.spool.ballast import Ballast
from ingestor.spool.chunk_store import (
    ChunkReader,
    ChunkRow,
    ChunkWriter,
    DiskFull,
    SpoolUnreadable,
    newest_entry,
    pack,
)
from ingestor.spool.fill_level import FillLevel, next_fill_level
from ingestor.spool.header import SpoolHeartbeat
from ingestor.spool.keep import KEEP_NOTHING, Keep
from ingestor.spool.mark import MARK, Mark, read_mark, write_mark
from ingestor.spool.salvage import SalvagedSpool

CHUNK_ENTRIES = 1_000
CHUNK_BYTES = 1 << 20
READ_BYTES = 8 << 20
LOCK = "lock"
CORRUPT_MARKER = "corrupt"  # a file in the spool's folder: the next start quarantines the spool
QUARANTINE_PREFIX = "unreadable-"  # and a timestamp: the folder of a quarantined spool
EARLY_SYNC = 0.25  # of ``sync_every``: a sync may begin that much too early, instead of a wake-up of its own
MAX_UNSYNCED_BYTES = 32 << 20  # what a power cut may take; beyond that, reading from the socket pauses
DISK_FULL_RETRY_SECONDS = 0.5
DISK_FULL_STOP_SECONDS = 5.0  # a stop waits this long for space; what is not synced by then was never received
# Others that write 20 MB/s to the same disk need 200 MiB in two heartbeats, and the WALs of spool and database the
# rest. A small disk is low at a tenth of its size.
LOW_SPACE_BYTES = 256 << 20
GIVE_BACK_SECONDS = 0.25  # for that much of each heartbeat, the thread may give space back
_ENTRY_OVERHEAD_BYTES = 120  # of an entry beside its text, roughly: the bounds need no exact figure


class _Chunk(NamedTuple):
    first_seq: int
    entries: list[Item]
    size: int


class _Request:
    """Something that the writer asks of the spool's thread, and waits for."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run
        self.result: object = None
        self.done = False


T = TypeVar("T")
_Work: TypeAlias = _Chunk | SpoolHeartbeat | _Request | None  # None: end the thread


class Spool:
    """A spool that is locked by this process."""

    def __init__(self, folder: Path, *, max_bytes: int, sync_every_seconds: float, keep: Keep = KEEP_NOTHING) -> None:
        """Open or create the spool. One that cannot be read is moved to ``quarantined`` and replaced by a new one.

        ``max_bytes`` limits what was never acknowledged, ``keep`` what was.
        Raises AlreadyLocked if another process holds it, PermissionDenied, SpoolTooNew, SpoolFailed.
        """
        _make_folder(folder)
        self._keep = keep
        self.quarantined: Path | None = None  # the folder of the unreadable spool that this one replaces
        try:
            self._open_files(folder)
        except OSError as error:
            raise SpoolFailed(f"{folder}: {error.strerror}; fix that, or set spool.path to another folder") from error
        self._reader = ChunkReader(self._file.path)
        self._identities = {path: identity(path) for path in self._files()}
        header = self._file.found
        self.run_id = self._file.run_id
        self.spool_id = header.spool_id
        self.crashed = not header.clean  # nothing in the spool proves that the previous run came to its end
        self.last_heartbeat = header.heartbeat  # of the previous run
        self.opened_head = header.next_seq - 1  # the newest seq that was found
        self.max_bytes = max_bytes
        self._head = self.opened_head
        self.synced = self._head  # the newest seq that survives a power cut
        self.acked = header.acked
        self.highest_acked = header.highest_acked  # past ``acked``: entries that are to be written again
        self._held_from = sys.maxsize  # entries from here on are not dropped
        self._sync_every = sync_every_seconds
        self._open_runs: list[Callable[[], object]] = []  # to be ended in this pass of the loop
        self._pending: list[Item] = []
        self._pending_entries = self._pending_bytes = self._handed_over_bytes = self._synced_bytes = 0
        self._level = FillLevel.FINE
        self.disk_full = not self._ballast.held  # even without what was kept
        self._pass_ending = False  # ``_on_pass_end`` is called in this pass of the loop
        self._timer: asyncio.TimerHandle | None = None  # for when the next sync is due
        self._handed_over_at = -math.inf  # by the loop's clock
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._progress: asyncio.Event | None = None  # set after the next sync; None: no task waits for it
        self._arrived = threading.Condition()
        self._awaited_seq = 0  # by ``wait``
        self._woken = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._closing = threading.Event()
        self._boot_id = boot_id()
        self._close_by = 0.0  # time.monotonic()
        self._on_failure: Callable[[SpoolFailed], None] = lambda _: None
        self._on_handed_over: Callable[[int], object] = lambda _: None
        self.failure: SpoolFailed | None = None
        self.synced_at = time.monotonic()  # when the thread last advanced, for the watchdog

    def _open_files(self, folder: Path) -> None:
        self._lock = FileLock(folder / LOCK, "stop it, or give this daemon a spool.path of its own")
        self._ballast = Ballast(folder / "ballast")
        self._mark_path = folder / MARK
        self._last_mark = read_mark(self._mark_path)
        self._file = self._open_with_ballast(folder / "spool.db")
        self.found_loss = self._find_loss(self._last_mark)  # why durable entries are known to be lost
        if not self.found_loss:
            self._write_mark()
        self.set_aside = self._count_set_aside()  # quarantined spools that are still in the folder

    def _open_with_ballast(self, path: Path) -> ChunkWriter:
        try:
            return self._open(path)
        except SpoolFailed:
            if not self._ballast.held:
                raise
            self._ballast.release()  # SQLite does not always report that the disk is full
            return self._open(path)

    def _open(self, path: Path) -> ChunkWriter:
        marker = path.with_name(CORRUPT_MARKER)
        head = 0 if is_missing(path) else newest_entry(path)
        try:
            if not marker.exists():
                check_private(path)
                self._find_unread(path, head)
                file = ChunkWriter(path, keep=self._keep, released=self._lock.released)
                self.quarantined = _find_unreported(path.parent) if file.header.next_seq == 1 else None
                return file
        except SpoolUnreadable:
            _set(marker)  # if we are killed while moving the files, the next start continues
        self.quarantined = path.with_name(f"{QUARANTINE_PREFIX}{time.time_ns()}")
        self.quarantined.mkdir()
        for part in path.parent.glob(f"{path.name}*"):
            part.rename(self.quarantined / part.name)
        if self._last_mark:  # names the run, if the header of the spool cannot be read
            write_mark(self.quarantined / MARK, self._last_mark)
        marker.unlink(missing_ok=True)
        return ChunkWriter(path, keep=self._keep)

    def _find_unread(self, path: Path, head: int) -> None:
        """Raise SpoolUnreadable if there are entries past ``head`` that SQLite does not read: it would overwrite them.

        It ignores a WAL from the first damage in it on.
        """
        mark = self._last_mark
        if mark is None or is_missing(path) or head >= mark.seq:
            return
        newest = max((readable.last_seq for readable in SalvagedSpool(path.parent).readable), default=0)
        if newest > head:
            raise SpoolUnreadable(f"{path}: SQLite reads the entries up to {head}, but {newest} is there")

    def _files(self) -> tuple[Path, ...]:
        path = self._file.path
        return path, path.with_name(f"{path.name}-wal"), path.with_name(LOCK)

    def _find_loss(self, mark: Mark | None) -> str | None:
        """Compare with the mark, which the newest run has left beside the spool."""
        if mark is None:
            return None
        if mark.run_id not in self._file.left_by:
            return f"the spool's file was replaced or has lost its last run, which had received entry {mark.seq}"
        opened_head = self._file.found.next_seq - 1
        if opened_head < mark.seq:
            return f"the spool ends at entry {opened_head}, but {mark.seq} was durable: it is damaged or an older copy"
        return None

    @property
    def loss(self) -> str | None:
        """Why durable entries are lost; None if none are known to be."""
        if self.quarantined is None:
            return self.found_loss
        return f"the spool could not be read completely; it is now {self.quarantined}, see `ingestor spool salvage`"

    @property
    def believable_us(self) -> int | None:
        """Until when (µs) nothing is lost of what was received: the earliest time that a part of the spool claims."""
        stamps = [self._last_mark.at_us] if self._last_mark and self._last_mark.at_us else []
        if self.last_heartbeat:
            stamps.append(self.last_heartbeat.at_us)
        if self.quarantined and not stamps:
            stamps = [max((file.stat().st_mtime_ns // 1000 for file in self.quarantined.iterdir()), default=0)]
        return min(stamps, default=None)

    def knows_run(self, run_id: str) -> bool:
        """Whether it is this run, an earlier one of this spool, or the empty id, which older programs registered."""
        return run_id in ("", self.run_id) or run_id in self._file.left_by

    def left_by(self, run_id: str) -> int | None:
        """Return the newest seq that an earlier run has left in this spool. None if it is this run, or not known.

        That run may have gone further, in another copy of the spool or before this older one was put back.
        """
        return self._file.left_by.get(run_id)

    def start(
        self, on_failure: Callable[[SpoolFailed], None], on_handed_over: Callable[[int], object] | None = None
    ) -> None:
        """Start the thread. ``on_failure`` is called in the loop if the disk fails: nothing is durable from then on.

        ``on_handed_over`` is called in the loop with the bytes that came since the last sync: the next one is not due
        for ``sync_every``.
        """
        self._loop = asyncio.get_running_loop()
        self._on_failure = on_failure
        self._on_handed_over = on_handed_over or self._on_handed_over
        self._thread.start()

    # -- for the event loop

    @property
    def head(self) -> int:
        """The newest seq. Runs under way end before it is returned."""
        self._end_runs()
        return self._head

    def append(self, item: Item) -> int:
        """Queue an entry, or those of a run, and return the last seq. It is received once ``durable(seq)`` returns."""
        if isinstance(item, FrameRun):
            self._append_run(item)
        else:
            self._end_runs()  # their frames came before
            self._add(item, 1, len(item.text) if isinstance(item, Frame) else 0)
        return self._head

    def begin_run(self, end: Callable[[], object]) -> None:
        """Let ``end`` append a run before anything else is appended, at the latest at the end of this pass."""
        self._open_runs.append(end)
        self._await_pass_end()

    def _end_runs(self) -> None:
        while self._open_runs:
            self._open_runs.pop(0)()

    def _append_run(self, run: FrameRun) -> None:
        start = 0
        while start < len(run.texts):
            part = run.part(start, CHUNK_ENTRIES - self._pending_entries)
            self._add(part, len(part.texts), sum(map(len, part.texts)))
            start += len(part.texts)

    def _add(self, item: Item, entries: int, text_bytes: int) -> None:
        self._await_pass_end()
        self._head += entries
        self._pending.append(item)
        self._pending_entries += entries
        self._pending_bytes += entries * _ENTRY_OVERHEAD_BYTES + text_bytes
        if self._pending_bytes >= CHUNK_BYTES or self._pending_entries >= CHUNK_ENTRIES:
            self._hand_over()

    def _await_pass_end(self) -> None:
        if not self._pass_ending:
            self._pass_ending = True
            self._loop.call_soon(self._on_pass_end)

    def _on_pass_end(self) -> None:
        """Hand over what came in this pass of the loop, or let it wait until the next sync is due."""
        self._end_runs()
        self._pass_ending = False
        if not self._pending:
            return
        due_at = self._handed_over_at + self._sync_every
        if self._loop.time() >= due_at - EARLY_SYNC * self._sync_every:
            size = self._pending_bytes
            self._hand_over()
            self._on_handed_over(size)
        elif not self._timer:
            # After what the loop reads in the same pass, which would wait for the next sync.
            self._timer = self._loop.call_at(due_at, self._await_pass_end)

    def _hand_over(self) -> None:
        if not self._pending:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._handed_over_at = self._loop.time()
        chunk = _Chunk(self._head - self._pending_entries + 1, self._pending, self._pending_bytes)
        self._pending, self._pending_entries, self._pending_bytes = [], 0, 0
        self._handed_over_bytes += chunk.size
        self.update_fill_level()
        self._queue.put(chunk)

    def update_fill_level(self) -> FillLevel:
        """Measure how full the spool is, and return that."""
        used_percent = 100 * self.live_bytes / self.max_bytes
        self._level = next_fill_level(self._level, used_percent=used_percent, disk_full=self.disk_full)
        return self._level

    @property
    def full(self) -> bool:
        """Whether it takes no frames, only facts."""
        return self._level is FillLevel.FULL

    @property
    def congested(self) -> bool:
        """Whether readers of sockets should await ``wait_for_space``: too much is unsynced, or the spool is full."""
        return self._unsynced_bytes > MAX_UNSYNCED_BYTES or self.full

    @property
    def _unsynced_bytes(self) -> int:
        return self._handed_over_bytes - self._synced_bytes  # the loop adds to the first, the thread to the second

    async def wait_for_space(self) -> None:
        await self._wait_until(lambda: not self.congested)

    async def durable(self, seq: int) -> None:
        """Wait until ``seq`` is on the disk. Raises SpoolFailed if it never will be."""
        await self._wait_until(lambda: self.synced >= seq)

    async def _wait_until(self, is_fulfilled: Callable[[], bool]) -> None:
        while True:
            progress = self._progress = self._progress or asyncio.Event()  # before the look, so that no sync is missed
            if is_fulfilled():
                return
            if self.failure:
                raise self.failure
            await progress.wait()

    def heartbeat(self, at_us: int, heard_us: Mapping[tuple[str, str], int] = MappingProxyType({})) -> None:
        """Record that everything received before ``at_us`` has been appended, and when connections were last heard.

        ``heard_us``: for each group (path, shared params) that has live subscriptions, in µs since the epoch.
        """
        self._end_runs()
        self._hand_over()
        self._queue.put(SpoolHeartbeat(at_us, self._head, dict(heard_us), boottime(), self._boot_id))

    def purge_acknowledged(self) -> None:
        """Count what was acknowledged, and drop what is not kept, now instead of with the next entry."""
        self._queue.put(_Chunk(self.head + 1, [], 0))

    async def flush(self) -> None:
        """Wait until everything that was appended is on the disk, for a limited time if the disk is full.

        Raises SpoolFailed if some of it never will be: that was never received.
        """
        self._limit_retries()
        await self.durable(self.head)

    def _limit_retries(self) -> None:
        if not self._closing.is_set():
            self._close_by = time.monotonic() + DISK_FULL_STOP_SECONDS
            self._closing.set()

    async def close(self) -> None:
        """Sync what is pending, end the thread, release the lock."""
        self._end_runs()
        self._hand_over()
        self._limit_retries()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reader.close()
        self._file.close()
        self._lock.release()

    # -- in the spool's thread

    def _run(self) -> None:
        try:
            while self._sync(self._next_work()):
                pass
        except Exception as error:
            # Whatever it is: without this thread nothing becomes durable, so every waiter must be woken.
            failure = error if isinstance(error, SpoolFailed) else SpoolFailed(f"{self._file.path}: {error!r}")
            with self._arrived:
                self.failure = failure
                self._arrived.notify_all()
            self._loop.call_soon_threadsafe(self._on_thread_failed, failure)

    def _next_work(self) -> list[_Work]:
        """Wait for work, and return all that has accumulated: one transaction, one fsync."""
        work = [self._queue.get()]
        try:
            while True:
                work.append(self._queue.get_nowait())
        except Empty:
            return work

    def _sync(self, work: list[_Work]) -> bool:
        chunks = [item for item in work if isinstance(item, _Chunk)]
        heartbeats = [item for item in work if isinstance(item, SpoolHeartbeat)]
        requests = [item for item in work if isinstance(item, _Request)]
        rows = [pack(chunk.first_seq, chunk.entries) for chunk in chunks if chunk.entries]
        heartbeat = heartbeats[-1] if heartbeats else None
        ends = None in work
        self._write(rows, heartbeat=heartbeat, clean=ends)
        for request in requests:
            request.result = self._with_space(request.run)
        if heartbeat or ends:
            self._check_files()
            self.set_aside = self._count_set_aside()
            self._write_mark()
        if heartbeat and not ends:
            self._relieve_disk()
        self.synced_at = time.monotonic()
        with self._arrived:
            self.synced = self._file.header.next_seq - 1
            self.spool_id = self._file.header.spool_id
            for request in requests:
                request.done = True
            if requests or self.synced >= self._awaited_seq:
                self._arrived.notify_all()
        self._synced_bytes += sum(chunk.size for chunk in chunks)
        if self._progress:  # usually not: 50 syncs a second that wake the loop take 0.5 % of a core
            self._loop.call_soon_threadsafe(self._on_progress)
        return not ends

    def _write(self, rows: list[ChunkRow], **changes: Any) -> None:
        self._with_space(lambda: self._file.write(rows, acked=self.acked, held_from=self._held_from, **changes))

    def _with_space(self, write: Callable[[], T]) -> T:
        """Make one durable transaction. On a full disk, make space and repeat it."""
        while True:
            try:
                result = write()
                break
            except DiskFull:
                self.synced_at = time.monotonic()
                self._make_space()
        self._reserve_ballast()
        return result

    def _reserve_ballast(self) -> None:
        while not self._ballast.held:
            lacks_space = self._ballast.reserve()
            if not (lacks_space and self._return_space()):
                break
            self.synced_at = time.monotonic()
        self.disk_full = not self._ballast.held

    def _check_files(self) -> None:
        """Raise SpoolFailed if what is open no longer has its name: the next start would not find it."""
        for path, opened in self._identities.items():
            if is_missing(path) or identity(path) != opened:
                raise SpoolFailed(
                    f"{path}: was deleted or replaced while in use; stopping, since no restart would find new entries"
                )

    def _count_set_aside(self) -> int:
        return len(list(self._file.path.parent.glob(f"{QUARANTINE_PREFIX}*")))

    def _write_mark(self) -> None:
        """Mark what is durable now. If a loss was found, not before an entry is, because that one reports the loss."""
        header = self._file.header
        if not self.found_loss or header.next_seq - 1 > self.opened_head:
            at_us = header.heartbeat.at_us if header.heartbeat else 0
            write_mark(self._mark_path, Mark(self._file.run_id, header.next_seq - 1, at_us))

    def _make_space(self) -> None:
        """Drop what is kept; then release the ballast; then wait for others to free some space.

        Raises SpoolFailed if a stop has waited long enough.
        """
        if self._give_back():
            return
        self.disk_full = True
        if self._ballast.held:
            self._ballast.release()
        elif self._closing.wait(DISK_FULL_RETRY_SECONDS):
            time.sleep(DISK_FULL_RETRY_SECONDS)
            if time.monotonic() >= self._close_by:
                raise SpoolFailed("the disk is still full, stopping without the entries that could not be synced")
        with suppress(DiskFull):  # the caller repeats its own write
            self._file.write([], acked=self.acked)

    def _give_back(self) -> bool:
        """Give a step of space back. Even to drop something, SQLite must write: if need be, where the ballast was.

        Returns whether there was something to give.
        """
        try:
            return self._file.give_back(self.acked)
        except DiskFull:
            self._ballast.release()
        with suppress(DiskFull):
            return self._file.give_back(self.acked)
        return False

    def _relieve_disk(self) -> None:
        """Give kept space back to others before the disk is full: a database on it, which would have to stop."""
        until = time.monotonic() + GIVE_BACK_SECONDS
        while _is_low(self._file.path) and self._return_space() and time.monotonic() < until:
            self.synced_at = time.monotonic()
        self._reserve_ballast()

    def _return_space(self) -> bool:
        """Give a step of space back to the disk. Returns False if there is none.

        What a file that cannot shrink keeps is of no use to others, so it stays until a write of ours needs its place.
        """
        return self._file.can_shrink and self._give_back()

    def _on_progress(self) -> None:
        self.update_fill_level()
        if self._progress:
            self._progress.set()
            self._progress = None

    def _on_thread_failed(self, failure: SpoolFailed) -> None:
        self._on_progress()
        self._on_failure(failure)

    # -- for the writer

    def wait(self, after_seq: int, max_wait_seconds: float, min_entries: int = 1) -> bool:
        """Wait until ``min_entries`` past ``after_seq`` are durable, or ``wake``. Returns whether any are durable."""
        with self._arrived:
            self._awaited_seq = after_seq + min_entries
            self._arrived.wait_for(lambda: self._woken or self.synced >= self._awaited_seq, max_wait_seconds)
            self._woken = False
            return self.synced > after_seq

    def wake(self) -> None:
        """End the current call of ``wait``, or else the next one."""
        with self._arrived:
            self._woken = True
            self._arrived.notify_all()

    def read_items(self, after_seq: int, *, max_entries: int) -> list[SpooledItem]:
        return self._reader.read_items(after_seq, max_entries=max_entries, max_bytes=READ_BYTES)

    def read(self, after_seq: int, *, max_entries: int) -> list[Entry]:
        return list(split_into_entries(self.read_items(after_seq, max_entries=max_entries)))

    def first_seq(self) -> int:
        """Return the oldest entry that the spool has, kept ones included, or the next one.

        They stay until the next ``ack`` or ``rewind``, unless the disk is full.
        """
        self._held_from = 0
        synced = self.synced  # before the query: an entry that is synced meanwhile is there, not deleted
        forgotten = self.acked if self._keep.nothing else self._file.header.forgotten
        self._held_from = max(self._reader.first_seq() or synced + 1, forgotten + 1)
        return self._held_from

    def rewind(self, position: int) -> bool:
        """Set ``acked`` back: everything past ``position`` is to be written again, and not dropped before that is done.

        Durable on return. Returns False, and changes nothing, if the entry after ``position`` was dropped.
        """
        if position >= self.acked:
            self.ack(position)
            return True
        return bool(self._request(lambda: self._rewind(position)))

    def _rewind(self, position: int) -> bool:
        """In the spool's thread: what writes next must use the new ``acked``."""
        if self._file.rewind(position):
            self.acked, self._held_from = position, sys.maxsize
            return True
        return False

    def reset_id(self, *, keep: bool = True) -> None:
        """Change ``spool_id``, so that this is a new instance for the database. Durable on return.

        Without ``keep`` what is acknowledged is dropped: another instance has written it.
        """
        changes: dict[str, Any] = {"spool_id": secrets.token_hex(16)}
        if not keep:
            changes["forgotten"] = self.acked
        self._request(lambda: self._file.update(**changes))

    @property
    def server(self) -> tuple[str, int] | None:
        """System identifier and timeline of the newest PostgreSQL server that this spool was written to."""
        return self._file.header.server

    def note_server(self, system: str, timeline: int) -> None:
        """Remember the server that this spool is written to. Durable on return."""
        self._request(lambda: self._file.update(server=(system, timeline)))

    def _request(self, run: Callable[[], T]) -> T:
        """Run a transaction in the spool's thread. Raises SpoolFailed."""
        request = _Request(run)
        self._queue.put(request)
        with self._arrived:
            self._arrived.wait_for(lambda: request.done or self.failure is not None)
        if self.failure:
            raise self.failure
        return cast(T, request.result)

    def mark_corrupt(self) -> None:
        """Let the next start quarantine this spool: what was read is not what was written."""
        _set(self._file.path.with_name(CORRUPT_MARKER))

    def ack(self, seq: int) -> None:
        """Let the next sync drop what is not kept up to ``seq``. The database's own position stays authoritative."""
        self._held_from = sys.maxsize
        self.acked = max(self.acked, seq)
        self.highest_acked = max(self.highest_acked, self.acked)

    # -- for status

    @property
    def entries(self) -> int:
        return self.head - self.acked

    @property
    def live_bytes(self) -> int:
        """The size of what was never acknowledged: only this counts towards ``max_bytes``."""
        return self._file.header.live_bytes + self._unsynced_bytes

    @property
    def kept_bytes(self) -> int:
        """The size of what is acknowledged and still there."""
        return self._file.header.kept_bytes

    @property
    def durable_heartbeat(self) -> SpoolHeartbeat | None:
        """The newest durable heartbeat."""
        return self._file.header.heartbeat


def _is_low(path: Path) -> bool:
    """Return whether the file system has little space left for this user."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize < min(LOW_SPACE_BYTES, found.f_blocks * found.f_frsize // 10)


def _set(marker: Path) -> None:
    os.close(open_private(marker, os.O_WRONLY | os.O_CREAT))


def _find_unreported(folder: Path) -> Path | None:
    """Return the newest quarantined spool, for a spool without entries: its first would have reported this."""
    return max(folder.glob(f"{QUARANTINE_PREFIX}*"), default=None)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except PermissionError as error:
        raise PermissionDenied(
            f"{folder}: {error.strerror}; chown it to this user, or set spool.path to another folder"
        ) from None
    except OSError as error:
        raise SpoolFailed(f"{folder}: {error.strerror}; set spool.path to a folder that can be created") from None
