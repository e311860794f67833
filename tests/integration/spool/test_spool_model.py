"""The spool's real files against a plain model, a list with marks, under any sequence of operations."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from ingestor.core.entries import Fact, Frame, FrameRun
from ingestor.spool import ballast
from ingestor.spool import spool as module
from ingestor.spool.keep import KEEP_NOTHING, Keep
from ingestor.spool.spool import Spool
from tests.support.entries import T0, fact, frame
from tests.support.hypothesis_steps import MODEL_TIMEOUT_METHOD, StepCounter, fast_folder, run_for
from tests.support.writers import raise_failure

CHUNK_ENTRIES = 4  # small, so that the ends of chunks are everywhere


class SpoolAgainstModel(StepCounter):
    """One spool on disk. The model: every entry that was appended under its id, and how many of them are durable."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._top = fast_folder()
        self._copies = 0
        self._heartbeats = 0
        self._begin_model()
        self._open(self._top / "0", KEEP_NOTHING)
        self.spool_id = self.spool.spool_id

    def teardown(self) -> None:
        self._await(self.spool.close())
        self._loop.close()
        shutil.rmtree(self._top)

    def _begin_model(self) -> None:
        self.appended: list[Frame | Fact] = []  # seq n is at n - 1
        self.synced = 0  # the last seq that was seen to be durable
        self.position = 0  # what the database has committed: it does not crash with the spool
        self.acked = 0  # how far the spool knows that, in this run
        self.heartbeat: tuple[int, int] | None = None

    def _open(self, folder: Path, keep: Keep | None = None) -> None:
        self._folder = folder
        self._keep = self._keep if keep is None else keep
        # At 0 the sync is due as soon as the loop runs; until then entries are in memory only.
        self.spool = Spool(folder, max_bytes=1 << 30, sync_every_seconds=0, keep=self._keep)
        self.acked = self.spool.acked
        self._await(self._start())

    async def _start(self) -> None:
        self.spool.start(raise_failure)

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(asyncio.wait_for(work, 20))

    # -- input

    @rule(size=st.integers(1, 2 * CHUNK_ENTRIES + 1))
    def append_run(self, size: int) -> None:
        seqs = range(len(self.appended) + 1, len(self.appended) + 1 + size)
        frames = [frame("x" * (seq % 7), received_us=T0 + seq) for seq in seqs]
        self.appended += frames
        stamps, texts = [frame.received_us for frame in frames], [frame.text for frame in frames]
        first = frames[0]
        run = FrameRun(first.connection_id, first.source, first.event, first.path, first.params, stamps, texts)
        assert self.spool.append(run) == len(self.appended)

    @rule(size=st.integers(1, 2 * CHUNK_ENTRIES + 1), facts=st.booleans())
    def append(self, size: int, facts: bool) -> None:
        for _ in range(size):
            number = len(self.appended) + 1
            entry = fact(at_us=T0 + number) if facts else frame("x" * (number % 7), received_us=T0 + number)
            self.appended.append(entry)
            assert self.spool.append(entry) == number

    @rule()
    def sync(self) -> None:
        self._await(self.spool.durable(self.spool.head))
        self.synced = len(self.appended)
        assert self.spool.synced == self.synced

    @rule()
    def send_heartbeat(self) -> None:
        self._heartbeats += 1
        self.heartbeat = (T0 + self._heartbeats, len(self.appended))
        self.spool.heartbeat(self.heartbeat[0])
        self._await(self._published(self.heartbeat))
        self.synced = len(self.appended)
        # Every write drops what was acknowledged and is not kept, chunk by chunk.
        if self._keep.nothing:
            assert self.spool.first_seq() > self.acked - CHUNK_ENTRIES
            self.spool.ack(0)  # no longer held
        assert self.spool.live_bytes == 0 or self.acked < len(self.appended)
        self._wait_until_idle()
        assert self.spool.kept_bytes <= self._keep.size_bytes
        self._check_sizes()

    async def _published(self, heartbeat: tuple[int, int]) -> None:
        while (self.spool.durable_heartbeat or ())[:2] != heartbeat:
            await asyncio.sleep(0.0005)

    # -- output

    @precondition(lambda self: self.synced > self.position)
    @rule(data=st.data())
    def peek(self, data: st.DataObject) -> None:
        after = data.draw(st.integers(self.position, self.synced - 1), label="after")
        at_most = data.draw(st.integers(1, 3 * CHUNK_ENTRIES), label="at most")
        read = self.spool.read(after, max_entries=at_most)
        assert 1 <= len(read) < at_most + CHUNK_ENTRIES
        assert read == list(enumerate(self.appended[after : after + len(read)], after + 1))

    @precondition(lambda self: self.synced > self.position)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.position = data.draw(st.integers(self.position + 1, self.synced), label="position")

    @rule()
    def ack(self) -> None:
        self.spool.ack(self.position)
        self.acked = self.position

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        """The database goes back, to a position that it had."""
        position = data.draw(st.integers(0, self.acked), label="position")
        first_seq = self.spool.first_seq()
        done = self.spool.rewind(position)
        # Without keep, acknowledged entries are there until the next write, and first_seq() does not count them.
        assert done == (first_seq - 1 <= position) or (done and self._keep.nothing)
        if done:
            self.position = self.acked = position
            assert self.spool.read(position, max_entries=1)[0][0] == position + 1 if position < self.synced else True

    @rule()
    def make_space(self) -> None:
        """The disk is full: everything that may go goes."""
        self._wait_until_idle()
        while self.spool._request(self.spool._give_back):
            pass
        assert self.spool.kept_bytes == 0

    @rule(keep=st.booleans())
    def reset_id(self, keep: bool) -> None:
        self._wait_until_idle()
        self.spool.reset_id(keep=keep)
        assert keep or self.spool.first_seq() == self.acked + 1
        assert self.spool.spool_id != self.spool_id
        self.spool_id = self.spool.spool_id

    # -- restarts and crashes

    @rule(keep=st.sampled_from([KEEP_NOTHING, Keep(1e9, 600), Keep(1e9, 1 << 30), Keep(1e-9, 1 << 30)]))
    def stop_and_start(self, keep: Keep) -> None:
        acked = self.acked
        self._await(self.spool.close())
        self._open(self._folder, keep)
        assert not self.spool.crashed
        assert (self.spool.head, self.spool.acked) == (len(self.appended), acked)
        self._recovered()

    @rule()
    def kill(self) -> None:
        self._wait_until_idle()
        self._move_to(self._copy())
        self._recovered()

    @precondition(lambda self: len(self.appended) > self.synced)
    @rule(share=st.floats(0, 1))
    def kill_during_a_sync(self, share: float) -> None:
        self._wait_until_idle()
        log = self._folder / "spool.db-wal"
        before = log.read_bytes()
        self._await(self.spool.durable(self.spool.head))
        after = log.read_bytes()
        copy = self._copy()
        if after.startswith(before):  # otherwise the WAL was restarted, and the last write is unknown
            (copy / log.name).write_bytes(after[: len(before) + int(share * (len(after) - len(before)))])
        self._move_to(copy)
        appended = self.appended.copy()
        self._recovered()
        # How many entries one transaction had is chance, but a run must be reproducible.
        for entry in appended[len(self.appended) :]:
            self.appended.append(entry)
            self.spool.append(entry)
        self.sync()

    @rule()
    def mark_corrupt(self) -> None:
        self.spool.mark_corrupt()
        self._await(self.spool.close())
        self._open(self._folder)
        assert self.spool.quarantined is not None
        assert self.spool.spool_id != self.spool_id
        self._begin_model()
        self._recovered()

    def _wait_until_idle(self) -> None:
        """Wait until the thread is idle: a copy made while it writes would be inconsistent."""
        handed = self.spool.head - self.spool._pending_entries
        assert handed == 0 or self.spool.wait(handed - 1, 20)

    def _copy(self) -> Path:
        self._copies += 1
        copy = self._top / str(self._copies)
        # Without the shared memory, which belongs to the running process.
        shutil.copytree(self._folder, copy, ignore=shutil.ignore_patterns("*-shm", "unreadable-*"))
        return copy

    def _move_to(self, copy: Path) -> None:
        self._await(self.spool.close())
        shutil.rmtree(self._folder)
        self._open(copy)
        assert self.spool.crashed
        assert self.spool.quarantined is None
        assert self.spool.spool_id == self.spool_id

    def _recovered(self) -> None:
        """Check that synced entries are there; later ones may be, in order."""
        assert self.synced <= self.spool.head == self.spool.synced <= len(self.appended)
        assert self.spool.acked <= self.position
        assert (self.spool.durable_heartbeat or ())[:2] == (self.heartbeat or ())
        self._check_sizes()
        del self.appended[self.spool.head :]
        self.synced = self.spool.head
        self.spool_id = self.spool.spool_id

    def _check_sizes(self) -> None:
        with closing(sqlite3.connect(f"file:{self._folder}/spool.db?mode=ro", uri=True)) as file:
            chunks = file.execute("SELECT last_seq, size FROM chunks").fetchall()
        header = self.spool._file.header
        assert header.live_bytes == sum(size for last_seq, size in chunks if last_seq > header.highest_acked)
        assert header.kept_bytes == sum(size for last_seq, size in chunks if last_seq <= header.acked)

    # -- invariants

    @invariant()
    def durable_entries_are_complete_and_in_order(self) -> None:
        assert self.spool.head == len(self.appended)
        assert self.spool.entries == self.spool.head - self.acked
        assert (self.spool._reader.first_seq() or 0) - 1 <= self.position <= self.spool.synced
        read, after = [], self.position
        while after < self.synced:
            page = self.spool.read(after, max_entries=CHUNK_ENTRIES)
            read += page
            after = page[-1][0]
        assert read == list(enumerate(self.appended[self.position : after], self.position + 1))


@pytest.fixture
def small_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, and a small ballast."""
    monkeypatch.setattr(module, "CHUNK_ENTRIES", CHUNK_ENTRIES)
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 4096)


@pytest.mark.usefixtures("small_spool")
@pytest.mark.timeout(300, method=MODEL_TIMEOUT_METHOD)
def test_spool_agrees_with_the_model() -> None:
    run_for(SpoolAgainstModel, 8_000)
