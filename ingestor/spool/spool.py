"""The durable first-in-first-out store between socket and database: append, sync, read, ack, depth.

The event loop appends and never waits. A thread of its own writes and fsyncs what has come together (group commit), at
most ``sync_every`` after the first of it arrived. The writer reads and acknowledges from its thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeAlias

from ingestor.core.entries import Entry, Fact, Frame
from ingestor.core.files import FileLock
from ingestor.errors import PermissionDenied, SpoolFailed
from ingestor.spool.ballast import Ballast
from ingestor.spool.chunk_store import ChunkReader, ChunkRow, ChunkWriter, DiskFull, SpoolUnreadable, pack
from ingestor.spool.fill_level import FillLevel, next_fill_level

CHUNK_ENTRIES = 1_000
CHUNK_BYTES = 1 << 20
READ_BYTES = 8 << 20
CORRUPT_MARKER = "condemned"  # the file that says so, in the spool's folder
QUARANTINE_PREFIX = "unreadable-"  # and a stamp: the folder for what was set aside
UNSYNCED_BYTES = 32 << 20  # what a power cut may take; more than this and reading pauses
FULL_RETRY_SECONDS = 0.5
FULL_PATIENCE_SECONDS = 5.0  # of a stop: what could not be synced by then was never received
_ENTRY_OVERHEAD_BYTES = 120  # an entry's names, roughly: bounds need no exact figure


class _Chunk(NamedTuple):
    first_seq: int
    entries: list[Frame | Fact]
    size: int


class _HeartbeatWork(NamedTuple):
    at_us: int
    seq: int


class _Name(NamedTuple):
    spool_id: str


_Work: TypeAlias = _Chunk | _HeartbeatWork | _Name | None  # None: the end


class Spool:
    """One spool, held by this process. The loop appends and awaits ``durable``; the writer reads and acknowledges."""

    def __init__(self, folder: Path, *, max_bytes: int, sync_every_seconds: float) -> None:
        """Open or create, and check head and tail.

        Raises Held if another process has it, SpoolFailed. A spool that cannot be read is set aside, see ``set_aside``.
        """
        _make_folder(folder)
        self.quarantined: Path | None = None  # the unreadable spool that this one replaces
        try:
            self._lock = FileLock(folder / "lock", "stop it, or give this daemon a spool.path of its own")
            self._ballast = Ballast(folder / "ballast")
            self._file = self._open_with_room(folder / "spool.db")
        except OSError as error:
            raise SpoolFailed(f"{folder}: {error.strerror}; mend that, or name another folder in spool.path") from error
        self.crashed = self._lock.abandoned  # the run before this one did not end by itself
        self._reader = ChunkReader(self._file.path)
        head = self._file.head
        self.spool_id = head.spool_id
        self.last_heartbeat_us = head.heartbeat_us  # of the run before this one
        self.max_bytes = max_bytes
        self.head = head.next_seq - 1  # the newest seq given out
        self.synced = self.head  # the newest seq that survives a power cut
        self.acked = head.acked
        self._sync_every = sync_every_seconds
        self._pending: list[Frame | Fact] = []
        self._pending_bytes = 0
        self._unsynced_bytes = 0
        self._level = FillLevel.FINE
        self._timer: asyncio.TimerHandle | None = None
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._progress = asyncio.Event()  # replaced at each sync: wakes all who wait for it
        self._arrived = threading.Condition()
        self._wanted = 0  # the seq that whoever waits there waits for
        self._woken = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._closing = threading.Event()
        self._close_by = 0.0
        self._on_failure: Callable[[SpoolFailed], None] = lambda _: None
        self.failure: SpoolFailed | None = None
        self.synced_at = time.monotonic()  # when the thread last came round: the watchdog looks at it

    def _open_with_room(self, path: Path) -> ChunkWriter:
        try:
            return self._open(path)
        except SpoolFailed:
            if not self._ballast.held:
                raise
            self._ballast.drop()  # SQLite does not always say that it is for want of room
            return self._open(path)

    def _open(self, path: Path) -> ChunkWriter:
        condemned = path.with_name(CORRUPT_MARKER)
        try:
            if not condemned.exists():
                file = ChunkWriter(path)
                self.quarantined = _untold(path.parent) if file.head.next_seq == 1 else None
                return file
        except SpoolUnreadable:
            condemned.touch()  # a kill in the midst of what follows: the next start goes on with it
        self.quarantined = path.with_name(f"{QUARANTINE_PREFIX}{time.time_ns()}")
        self.quarantined.mkdir()
        for part in path.parent.glob(f"{path.name}*"):
            part.rename(self.quarantined / part.name)
        condemned.unlink(missing_ok=True)
        return ChunkWriter(path)

    def start(self, on_failure: Callable[[SpoolFailed], None]) -> None:
        """Begin to sync. ``on_failure`` is called in the loop if the disk fails: nothing counts from then on."""
        self._loop = asyncio.get_running_loop()
        self._on_failure = on_failure
        self._thread.start()

    # -- the loop's side

    def append(self, what: Frame | Fact) -> int:
        """Take an entry and return its seq, at once. It is received when ``durable(seq)`` returns, not before."""
        self.head += 1
        if not self._pending:
            self._timer = self._loop.call_later(self._sync_every, self._hand_over)
        self._pending.append(what)
        self._pending_bytes += _ENTRY_OVERHEAD_BYTES + (len(what.text) if type(what) is Frame else 0)
        if self._pending_bytes >= CHUNK_BYTES or len(self._pending) >= CHUNK_ENTRIES:
            self._hand_over()
        return self.head

    def _hand_over(self) -> None:
        if not self._pending:
            return
        if self._timer:
            self._timer.cancel()
        chunk = _Chunk(self.head - len(self._pending) + 1, self._pending, self._pending_bytes)
        self._pending, self._pending_bytes = [], 0
        self._unsynced_bytes += chunk.size
        self.update_fill_level()
        self._queue.put(chunk)

    def update_fill_level(self) -> FillLevel:
        """How full it is. Remembers what it was, since FULL ends later than it begins."""
        used_percent = 100 * self.live_bytes / self.max_bytes
        self._level = next_fill_level(self._level, used_percent=used_percent, disk_full=self.disk_full)
        return self._level

    @property
    def congested(self) -> bool:
        """Too much is unsynced, or no room is left: who reads from outside should await ``wait_for_space``."""
        return self._unsynced_bytes > UNSYNCED_BYTES or self._level is FillLevel.FULL

    async def wait_for_space(self) -> None:
        while self.congested:
            await self._next_sync()

    async def durable(self, seq: int) -> None:
        """Return when ``seq`` is on the disk. Raises SpoolFailed if it never will be."""
        while self.synced < seq:
            await self._next_sync()

    async def _next_sync(self) -> None:
        if self.failure:
            raise self.failure
        await self._progress.wait()

    def heartbeat(self, at_us: int) -> None:
        """State that all received before ``at_us`` has been appended."""
        self._hand_over()
        self._queue.put(_HeartbeatWork(at_us, self.head))

    def purge_acknowledged(self) -> None:
        """Let what was acknowledged go now, though nothing new comes with which it would."""
        self._queue.put(_Chunk(self.head + 1, [], 0))

    async def flush(self) -> None:
        """Return when all that was appended is on the disk. From now on a full disk is not waited for without an end.

        Raises SpoolFailed if some of it never will be: that was never received.
        """
        self._lose_patience()
        await self.durable(self.head)

    def _lose_patience(self) -> None:
        if not self._closing.is_set():
            self._close_by = time.monotonic() + FULL_PATIENCE_SECONDS
            self._closing.set()

    async def close(self) -> None:
        """Sync what is pending, stop the thread, release the lock."""
        self._hand_over()
        self._lose_patience()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reader.close()
        self._file.close()
        self._lock.release(clean=self.failure is None)

    # -- the thread's side

    def _run(self) -> None:
        try:
            while self._sync(self._take()):
                pass
        except Exception as error:
            # Whatever it is: without this thread nothing becomes durable any more, and nobody may wait for it in vain.
            failure = error if isinstance(error, SpoolFailed) else SpoolFailed(f"the spool's thread: {error!r}")
            with self._arrived:
                self.failure = failure
                self._arrived.notify_all()
            self._loop.call_soon_threadsafe(self._failed, failure)

    def _take(self) -> list[_Work]:
        """Wait for work, then take all that has come together: one transaction, one fsync."""
        work = [self._queue.get()]
        try:
            while True:
                work.append(self._queue.get_nowait())
        except Empty:
            return work

    def _sync(self, work: list[_Work]) -> bool:
        chunks = [item for item in work if isinstance(item, _Chunk)]
        beats = [item for item in work if isinstance(item, _HeartbeatWork)]
        names = [item.spool_id for item in work if isinstance(item, _Name)]
        rows = [pack(chunk.first_seq, chunk.entries) for chunk in chunks if chunk.entries]
        self._write(rows, beats[-1] if beats else None, names[-1] if names else None)
        self.synced_at = time.monotonic()
        with self._arrived:
            self.synced = self._file.head.next_seq - 1
            self.spool_id = self._file.head.spool_id
            if names or self.synced >= self._wanted:
                self._arrived.notify_all()
        self._loop.call_soon_threadsafe(self._synced, sum(chunk.size for chunk in chunks))
        return None not in work

    def _write(self, rows: list[ChunkRow], beat: _HeartbeatWork | None, spool_id: str | None) -> None:
        """One durable transaction. On a full disk: drop the ballast, forget what was acknowledged, wait for room."""
        while True:
            try:
                self._file.write(rows, acked=self.acked, heartbeat=beat, spool_id=spool_id)
                break
            except DiskFull:
                self.synced_at = time.monotonic()
                self._make_room()
        if not self._ballast.held:
            self._ballast.take_up()

    def _make_room(self) -> None:
        """Drop the ballast; if that was done before, wait for others to free some. Acknowledged chunks may go now."""
        if self._ballast.held:
            self._ballast.drop()
        elif self._closing.wait(FULL_RETRY_SECONDS) and not self._patient():
            raise SpoolFailed("the disk is still full: what was not synced is given up, as it was never received")
        try:
            self._file.write([], acked=self.acked)
        except DiskFull:
            pass  # the caller tries again

    def _patient(self) -> bool:
        time.sleep(FULL_RETRY_SECONDS)
        return time.monotonic() < self._close_by

    @property
    def disk_full(self) -> bool:
        return not self._ballast.held

    def _synced(self, size: int) -> None:
        self._unsynced_bytes -= size
        self.update_fill_level()
        self._progress.set()
        self._progress = asyncio.Event()

    def _failed(self, failure: SpoolFailed) -> None:
        self._progress.set()
        self._on_failure(failure)

    # -- the writer's side

    def wait(self, after: int, timeout_seconds: float, company: int = 1) -> bool:
        """Block until so many entries past ``after`` are durable, the time is up, or ``wake``. Whether there is one."""
        with self._arrived:
            self._wanted = after + company
            self._arrived.wait_for(lambda: self._woken or self.synced >= self._wanted, timeout_seconds)
            self._woken = False
            return self.synced > after

    def wake(self) -> None:
        """End the ``wait`` under way, or else the next one: the writer is wanted elsewhere."""
        with self._arrived:
            self._woken = True
            self._arrived.notify_all()

    def read(self, after: int, *, max_entries: int) -> list[Entry]:
        return self._reader.read(after, max_entries=max_entries, max_bytes=READ_BYTES)

    def first_seq(self) -> int:
        """The oldest entry that stays held, or the next one to come: what was acknowledged may go at any time."""
        synced = self.synced  # before looking: what is synced meanwhile is held, not gone
        return max(self._reader.first_seq() or synced + 1, self.acked + 1)

    def reset_id(self) -> None:
        """Take a new ``spool_id``, with what is held: to a database this is another instance. Durable on return."""
        spool_id = secrets.token_hex(16)
        self._queue.put(_Name(spool_id))
        with self._arrived:
            self._arrived.wait_for(lambda: self.spool_id == spool_id or self.failure is not None)
        if self.failure:
            raise self.failure

    def mark_corrupt(self) -> None:
        """What was read is not what was written: the next start sets this spool aside."""
        (self._file.path.parent / CORRUPT_MARKER).touch()

    def ack(self, seq: int) -> None:
        """All up to ``seq`` is in the database: forget it with the next sync. The database's own position rules."""
        self.acked = max(self.acked, seq)

    # -- what status shows

    @property
    def entries(self) -> int:
        return self.head - self.acked

    @property
    def live_bytes(self) -> int:
        return self._file.head.live_bytes + self._unsynced_bytes

    @property
    def durable_heartbeat(self) -> tuple[int, int] | None:
        """(µs, seq) of the newest durable heartbeat."""
        head = self._file.head
        if head.heartbeat_us is None or head.heartbeat_seq is None:
            return None
        return head.heartbeat_us, head.heartbeat_seq


def _untold(folder: Path) -> Path | None:
    """What was set aside for a spool that has no entry yet: that this happened would have been its first."""
    return max(folder.glob(f"{QUARANTINE_PREFIX}*"), default=None)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except PermissionError as error:
        raise PermissionDenied(
            f"{folder}: {error.strerror}; chown it to this user, or name another folder in spool.path"
        ) from None
    except OSError as error:
        raise SpoolFailed(f"{folder}: {error.strerror}; name a folder that can be made in spool.path") from None
