"""The spool's real files against a plain model of it: a list, and marks in it. Whatever is done in whatever order."""

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

from ingestor.core.entries import Fact, Frame
from ingestor.errors import SpoolFailed
from ingestor.spool import ballast
from ingestor.spool import spool as module
from ingestor.spool.spool import Spool
from tests.support.entries import T0, fact, frame
from tests.support.hypothesis_steps import StepCounter, fast_folder, run_for

CHUNK_ENTRIES = 4  # small, so that the ends of chunks are everywhere


def _unexpected(failure: SpoolFailed) -> None:
    raise failure


class SpoolAgainstModel(StepCounter):
    """One spool on the disk. The model: every entry given in since its name began, and how far it surely lasts."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._top = fast_folder()
        self._lives = 0
        self._beats = 0
        self._begin_model()
        self._open(self._top / "0")
        self.name = self.spool.spool_id

    def teardown(self) -> None:
        self._await(self.spool.close())
        self._loop.close()
        shutil.rmtree(self._top)

    def _begin_model(self) -> None:
        self.given: list[Frame | Fact] = []  # seq n stands at n - 1
        self.synced = 0  # seqs up to here were seen durable
        self.position = 0  # what the database has committed: it does not crash with us
        self.told = 0  # what the spool was told of that, in this life
        self.heartbeat: tuple[int, int] | None = None

    def _open(self, folder: Path) -> None:
        self._folder = folder
        # At 0 the sync is due as soon as the loop runs: until then what was appended is in memory only.
        self.spool = Spool(folder, max_bytes=1 << 30, sync_every_seconds=0)
        self.told = self.spool.acked
        self._await(self._start())

    async def _start(self) -> None:
        self.spool.start(_unexpected)

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(asyncio.wait_for(work, 20))

    # -- what goes in

    @rule(size=st.integers(1, 2 * CHUNK_ENTRIES + 1), facts=st.booleans())
    def append(self, size: int, facts: bool) -> None:
        for _ in range(size):
            number = len(self.given) + 1
            entry = fact(at_us=T0 + number) if facts else frame("x" * (number % 7), received_us=T0 + number)
            self.given.append(entry)
            assert self.spool.append(entry) == number

    @rule()
    def sync(self) -> None:
        self._await(self.spool.durable(self.spool.head))
        self.synced = len(self.given)
        assert self.spool.synced == self.synced

    @rule()
    def beat(self) -> None:
        self._beats += 1
        self.heartbeat = (T0 + self._beats, len(self.given))
        self.spool.heartbeat(self.heartbeat[0])
        self._await(self._published(self.heartbeat))
        self.synced = len(self.given)
        # Whatever is written, what was acknowledged goes with it, chunk by chunk.
        assert self.spool.first_seq() > self.told - CHUNK_ENTRIES
        assert self.spool.live_bytes == 0 or self.told < len(self.given)

    async def _published(self, heartbeat: tuple[int, int]) -> None:
        while self.spool.durable_heartbeat != heartbeat:
            await asyncio.sleep(0.0005)

    # -- what comes out

    @precondition(lambda self: self.synced > self.position)
    @rule(data=st.data())
    def peek(self, data: st.DataObject) -> None:
        after = data.draw(st.integers(self.position, self.synced - 1), label="after")
        at_most = data.draw(st.integers(1, 3 * CHUNK_ENTRIES), label="at most")
        got = self.spool.read(after, max_entries=at_most)
        assert 1 <= len(got) < at_most + CHUNK_ENTRIES
        assert got == list(enumerate(self.given[after : after + len(got)], after + 1))

    @precondition(lambda self: self.synced > self.position)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.position = data.draw(st.integers(self.position + 1, self.synced), label="position")

    @rule()
    def ack(self) -> None:
        self.spool.ack(self.position)
        self.told = self.position

    @rule()
    def reset_id(self) -> None:
        self._hold_still()
        self.spool.reset_id()
        assert self.spool.spool_id != self.name
        self.name = self.spool.spool_id

    # -- what befalls it

    @rule()
    def stop_and_start(self) -> None:
        told = self.told
        self._await(self.spool.close())
        self._open(self._folder)
        assert not self.spool.crashed
        assert (self.spool.head, self.spool.acked) == (len(self.given), told)
        self._recovered()

    @rule()
    def kill(self) -> None:
        self._hold_still()
        self._move_to(self._copy())
        self._recovered()

    @precondition(lambda self: len(self.given) > self.synced)
    @rule(share=st.floats(0, 1))
    def kill_in_the_midst_of_a_sync(self, share: float) -> None:
        self._hold_still()
        log = self._folder / "spool.db-wal"
        before = log.read_bytes()
        self._await(self.spool.durable(self.spool.head))
        after = log.read_bytes()
        copy = self._copy()
        if after.startswith(before):  # else the log began anew, and there is no telling what was written last
            (copy / log.name).write_bytes(after[: len(before) + int(share * (len(after) - len(before)))])
        self._move_to(copy)
        given = self.given.copy()
        self._recovered()
        # How much had come together in one transaction is chance; a run must go on the same way each time.
        for entry in given[len(self.given) :]:
            self.given.append(entry)
            self.spool.append(entry)
        self.sync()

    @rule()
    def mark_corrupt(self) -> None:
        self.spool.mark_corrupt()
        self._await(self.spool.close())
        self._open(self._folder)
        assert self.spool.quarantined is not None
        assert self.spool.spool_id != self.name
        self._begin_model()
        self._recovered()

    def _hold_still(self) -> None:
        """Until the thread has nothing in hand: a copy taken meanwhile would be of two moments."""
        handed = self.spool.head - len(self.spool._pending)
        assert handed == 0 or self.spool.wait(handed - 1, 20)

    def _copy(self) -> Path:
        self._lives += 1
        copy = self._top / str(self._lives)
        # Without the shared memory: that is of the running process.
        shutil.copytree(self._folder, copy, ignore=shutil.ignore_patterns("*-shm", "unreadable-*"))
        return copy

    def _move_to(self, copy: Path) -> None:
        self._await(self.spool.close())
        shutil.rmtree(self._folder)
        self._open(copy)
        assert self.spool.crashed
        assert self.spool.quarantined is None
        assert self.spool.spool_id == self.name

    def _recovered(self) -> None:
        """What was synced is there; what was not may be, in order."""
        assert self.synced <= self.spool.head == self.spool.synced <= len(self.given)
        assert self.spool.acked <= self.position
        assert self.spool.durable_heartbeat == self.heartbeat
        assert self.spool.live_bytes == self._stored_bytes()
        del self.given[self.spool.head :]
        self.synced = self.spool.head
        self.name = self.spool.spool_id

    def _stored_bytes(self) -> int:
        with closing(sqlite3.connect(self._folder / "spool.db")) as file:
            return int(file.execute("SELECT coalesce(sum(size), 0) FROM chunks").fetchone()[0])

    # -- what always holds

    @invariant()
    def nothing_durable_is_missing_and_all_is_in_order(self) -> None:
        assert self.spool.head == len(self.given)
        assert self.spool.entries == self.spool.head - self.told
        assert self.spool.first_seq() - 1 <= self.position <= self.spool.synced
        got, after = [], self.position
        while after < self.synced:
            some = self.spool.read(after, max_entries=CHUNK_ENTRIES)
            got += some
            after = some[-1][0]
        assert got == list(enumerate(self.given[self.position : after], self.position + 1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, and no room kept for a full disk, which is another matter."""
    monkeypatch.setattr(module, "CHUNK_ENTRIES", CHUNK_ENTRIES)
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 4096)


@pytest.mark.usefixtures("small")
def test_the_spool_is_what_its_model_is() -> None:
    run_for(SpoolAgainstModel, 8_000)
