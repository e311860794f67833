from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingestor.core.entries import Frame, FrameRun, split_into_entries
from ingestor.daemon.factory import lock_database
from ingestor.errors import AlreadyLocked, DatabaseUnavailable, SpoolFailed, SpoolTooNew
from ingestor.spool.ballast import Ballast
from ingestor.spool.chunk_store import ChunkReader, ChunkWriter, pack
from ingestor.spool.spool import CHUNK_ENTRIES, Spool
from tests.support.entries import fact, frame, run
from tests.support.faulty_disks import fill_disk, small_disk
from tests.support.writers import raise_failure


@asynccontextmanager
async def open_spool(
    folder: Path,
    *,
    max_bytes: int = 1 << 30,
    sync_every_seconds: float = 0.005,
    on_handed_over: Callable[[int], object] | None = None,
) -> AsyncIterator[Spool]:
    spool = Spool(folder, max_bytes=max_bytes, sync_every_seconds=sync_every_seconds)
    spool.start(raise_failure, on_handed_over)
    try:
        yield spool
    finally:
        await spool.close()


async def test_entries_are_read_in_order_with_gapless_seqs(tmp_path: Path) -> None:
    entries = [frame([], received_us=i) if i % 3 else fact(at_us=i) for i in range(2 * CHUNK_ENTRIES + 7)]
    async with open_spool(tmp_path) as spool:
        assert [spool.append(entry) for entry in entries] == list(range(1, len(entries) + 1))
        await spool.durable(len(entries))
        read = []
        while len(read) < len(entries):
            read += spool.read(len(read), max_entries=500)
    assert read == list(enumerate(entries, 1))


async def test_read_is_bounded_but_returns_at_least_one_chunk(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        for _ in range(3 * CHUNK_ENTRIES):
            spool.append(fact())
        await spool.durable(3 * CHUNK_ENTRIES)
        assert len(spool.read(0, max_entries=1)) == CHUNK_ENTRIES
        assert spool.read(CHUNK_ENTRIES + 10, max_entries=1)[0][0] == CHUNK_ENTRIES + 11


async def test_seqs_continue_after_restart_of_an_empty_spool(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        spool_id = spool.spool_id
        seq = [spool.append(fact()) for _ in range(5)][-1]
        await spool.durable(seq)
        spool.ack(seq)
    async with open_spool(tmp_path) as spool:
        assert (spool.spool_id, spool.entries, spool.read(0, max_entries=9)) == (spool_id, 0, [])
        assert spool.append(fact()) == seq + 1


class OpenRun:
    """A run under way, as a connection has it."""

    def __init__(self, spool: Spool, connection_id: str) -> None:
        self.texts: list[str] = []
        self._append = spool.append
        self._connection_id = connection_id
        spool.begin_run(self._end)

    def _end(self) -> None:
        like = frame("")
        stamps = [like.received_us] * len(self.texts)
        self._append(FrameRun(self._connection_id, "stream", like.event, like.path, like.params, stamps, self.texts[:]))


async def test_acknowledged_chunk_is_deleted(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        await spool.durable(spool.append(frame("x" * 5000)))
        assert spool.live_bytes > 5000
        spool.ack(1)
        await spool.durable(spool.append(fact()))
        assert spool.live_bytes < 5000
        assert [seq for seq, _ in spool.read(0, max_entries=9)] == [2]


def test_full_disk_takes_no_chunk_that_is_acknowledged_in_part(tmp_path: Path) -> None:
    file = ChunkWriter(tmp_path / "spool.db")
    file.write([pack(first_seq, [frame("a"), frame("b"), frame("c")]) for first_seq in (1, 4)], acked=0)
    while file.give_back(5):
        pass
    file.close()
    reader = ChunkReader(tmp_path / "spool.db")
    assert [seq for seq, _ in split_into_entries(reader.read_items(0, max_entries=9, max_bytes=1 << 20))] == [4, 5, 6]
    reader.close()


def test_cost_of_acknowledging_is_independent_of_the_backlog(tmp_path: Path) -> None:
    costs = []
    for backlog in (100, 10_000):
        file = ChunkWriter(tmp_path / f"{backlog}.db")
        file.write([pack(seq, [fact()]) for seq in range(1, backlog + 1)], acked=0)
        steps: list[None] = []
        file._db.set_progress_handler(lambda steps=steps: steps.append(None), 1)
        file.write([], acked=10)
        file.close()
        costs.append(len(steps))
    assert costs[1] < 2 * costs[0], costs


async def test_full_chunk_is_synced_before_sync_every(tmp_path: Path) -> None:
    async with open_spool(tmp_path, sync_every_seconds=3600) as spool:
        await spool.durable(spool.append(fact()))
        seq = spool.append(fact())
        await asyncio.sleep(0.05)
        assert spool.synced == 1
        for _ in range(CHUNK_ENTRIES):
            spool.append(fact())
        await spool.durable(seq)  # a full chunk does not wait for sync_every


async def test_runs_under_way_end_before_a_fact_and_with_the_pass(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        first, second = OpenRun(spool, "first"), OpenRun(spool, "second")
        first.texts += ["a", "b"]
        second.texts.append("c")
        first.texts.append("d")
        assert spool.append(fact()) == 5
        third = OpenRun(spool, "third")
        third.texts.append("e")
        await asyncio.sleep(0)
        third.texts.append("after the pass")
        await spool.durable(6)
        received = [item.text if isinstance(item, Frame) else item.kind for _, item in spool.read(0, max_entries=9)]
        assert received == ["a", "b", "d", "c", fact().kind, "e"]
        assert [seq for seq, _ in spool.read(0, max_entries=9)] == [1, 2, 3, 4, 5, 6]


async def test_newest_seq_and_heartbeat_include_the_runs_under_way(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        OpenRun(spool, "first").texts.append("a")
        assert spool.head == 1
        OpenRun(spool, "second").texts.append("b")
        spool.heartbeat(1234)
        await spool.durable(2)
        assert spool.durable_heartbeat is not None
        assert spool.durable_heartbeat[:2] == (1234, 2)


async def test_long_run_is_split_into_chunks(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        spool.append(frame("first"))
        run = OpenRun(spool, "long")
        run.texts += map(str, range(2 * CHUNK_ENTRIES))
        await spool.durable(spool.head)
        with closing(sqlite3.connect(tmp_path / "spool.db")) as db:
            chunks = db.execute("SELECT first_seq, last_seq FROM chunks").fetchall()
        assert chunks == [(1, 1000), (1001, 2000), (2001, 2001)]
        entries = [item for _, item in spool.read(0, max_entries=3 * CHUNK_ENTRIES)]
        assert [item.text for item in entries if isinstance(item, Frame)] == [
            frame("first").text,
            *map(str, range(2000)),
        ]


async def test_sync_wakes_the_loop_only_if_something_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    calls: list[Callable[..., object]] = []

    wake = loop.call_soon_threadsafe

    def count(callback: Callable[..., object], *args: Any, **options: Any) -> asyncio.Handle:
        calls.append(callback)
        return wake(callback, *args, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    async with open_spool(tmp_path) as spool:
        for seq in (1, 2, 3):
            spool.append(fact())
            while spool.synced < seq:
                await asyncio.sleep(0.001)
        assert calls == []
        await spool.durable(spool.append(fact()))
        assert len(calls) == 1


async def test_spool_is_congested_while_too_much_is_unsynced(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        for _ in range(34):
            spool.append(frame("x" * (1 << 20)))
        assert spool.congested
        await spool.wait_for_space()
        assert not spool.congested


async def test_full_spool_is_congested_until_well_below_full(tmp_path: Path) -> None:
    async with open_spool(tmp_path, max_bytes=100_000) as spool:
        for size, acked, full in ((90_000, 0, False), (20_000, 0, True), (0, 0, True), (0, 2, False)):
            spool.ack(acked)
            await spool.durable(spool.append(frame("x" * size)))
            assert spool.congested is full


async def test_wake_ends_a_wait_for_entries(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        waiting = asyncio.create_task(asyncio.to_thread(spool.wait, 0, 5))
        await asyncio.sleep(0.05)
        spool.wake()
        assert await asyncio.wait_for(waiting, 4) is False


async def test_heartbeat_has_the_last_seq_before_it(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        spool.append(fact())
        spool.heartbeat(1234)
        await spool.durable(1)
        await spool.durable(spool.append(fact()))
        assert spool.durable_heartbeat is not None
        assert spool.durable_heartbeat[:2] == (1234, 1)
    async with open_spool(tmp_path) as spool:
        assert spool.last_heartbeat is not None
        assert spool.last_heartbeat.at_us == 1234


async def test_heartbeat_is_durable_with_the_entries_before_it(tmp_path: Path) -> None:
    async with open_spool(tmp_path, sync_every_seconds=3600) as spool:
        await spool.durable(spool.append(fact()))
        spool.append(fact())
        await asyncio.sleep(0.05)
        spool.heartbeat(1234)
        async with asyncio.timeout(5):
            await spool.durable(2)  # with the heartbeat, not after sync_every
        assert spool.durable_heartbeat is not None
        assert spool.durable_heartbeat[:2] == (1234, 2)


async def test_first_entry_is_synced_at_once_and_the_next_ones_together_after_sync_every(tmp_path: Path) -> None:
    handed_over: list[int] = []
    async with open_spool(tmp_path, sync_every_seconds=3, on_handed_over=handed_over.append) as spool:
        started_at = time.monotonic()
        await spool.durable(spool.append(frame("x" * 1000)))
        assert time.monotonic() - started_at < 2.5
        for _ in range(10):
            seq = spool.append(frame("x" * 100))
            await asyncio.sleep(0.005)
        assert spool.synced == 1
        await spool.durable(seq)
        assert time.monotonic() - started_at > 2.2  # a sync may begin a quarter early
        assert [size // 1000 for size in handed_over] == [1, 2]


async def test_first_seq_counts_entry_synced_during_the_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_spool(tmp_path) as spool:
        query, loop = spool._reader.first_seq, asyncio.get_running_loop()

        async def sync_entry() -> None:
            await spool.durable(spool.append(fact()))

        def query_then_sync() -> int | None:
            found = query()
            asyncio.run_coroutine_threadsafe(sync_entry(), loop).result(5)
            return found

        monkeypatch.setattr(spool._reader, "first_seq", query_then_sync)
        assert await asyncio.to_thread(spool.first_seq) == 1


async def test_second_spool_on_a_folder_names_the_holder(tmp_path: Path) -> None:
    async with open_spool(tmp_path):
        with pytest.raises(AlreadyLocked, match=f"process {os.getpid()}"):
            Spool(tmp_path, max_bytes=1, sync_every_seconds=1)


async def test_folder_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "spool"):
        assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["header", "body", "counter", "older format"])
async def test_unreadable_spool_is_quarantined_and_replaced(tmp_path: Path, damage: str) -> None:
    async with open_spool(tmp_path) as spool:
        old = spool.spool_id
        await spool.durable(spool.append(frame("x" * 100)))
    path = tmp_path / "spool.db"
    if damage == "header":
        path.write_bytes(b"not a database" * 1000)
    else:
        statement = {
            "body": "UPDATE chunks SET body = zeroblob(length(body))",
            "counter": "UPDATE head SET next_seq = 99",
            "older format": "UPDATE head SET format = 1",
        }[damage]
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()
    async with open_spool(tmp_path) as spool:
        assert spool.spool_id != old
        assert spool.quarantined is not None
        assert (spool.quarantined / "spool.db").exists()
        assert spool.append(fact()) == 1
        assert spool.set_aside == 1
        spool.quarantined.rename(tmp_path / "elsewhere")
        spool.heartbeat(1, {})
        await spool.flush()
        assert spool.set_aside == 0


async def test_spool_of_format_4_is_continued(tmp_path: Path) -> None:
    window = frame("x" * 1_000)
    async with open_spool(tmp_path) as spool:
        old = spool.spool_id
        await spool.durable(spool.append(fact()))
    body = msgspec.msgpack.encode([run(window, window)])
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("INSERT INTO chunks VALUES (2, 3, ?, ?, ?)", (len(body), zlib.crc32(body), body))
        db.execute("UPDATE head SET format = 4, next_seq = 4")
    db.close()
    async with open_spool(tmp_path) as spool:
        assert spool.spool_id == old
        assert spool.quarantined is None
        await spool.durable(spool.append(window))
        assert spool.read(1, max_entries=9) == [(2, window), (3, window), (4, window)]
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db:
        assert db.execute("SELECT format FROM head").fetchone() == (5,)


@pytest.mark.parametrize("marker", [False, True])
@pytest.mark.parametrize("change", ["UPDATE head SET clean = 1", "ALTER TABLE head RENAME next_seq TO newest"])
async def test_spool_of_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path, marker: bool, change: str) -> None:
    async with open_spool(tmp_path) as spool:
        await spool.durable(spool.append(fact()))
        if marker:
            spool.mark_corrupt()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("UPDATE head SET format = 99")
        db.execute(change)
    db.close()
    before = (tmp_path / "spool.db").read_bytes()
    with pytest.raises(SpoolTooNew, match=r"spool.db: a newer version wrote format 99, this one reads formats 2 to 5"):
        Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=1)
    assert (tmp_path / "spool.db").read_bytes() == before
    assert list(tmp_path.glob("unreadable-*")) == []


async def test_corrupt_spool_is_reported_until_the_first_entry(
    tmp_path: Path,
) -> None:
    async with open_spool(tmp_path) as spool:
        await spool.durable(spool.append(fact()))
        spool.mark_corrupt()
    async with open_spool(tmp_path) as spool:
        quarantined = spool.quarantined
        assert quarantined is not None
        assert spool.synced == 0
    async with open_spool(tmp_path) as spool:
        assert spool.quarantined == quarantined
        await spool.durable(spool.append(fact()))
    async with open_spool(tmp_path) as spool:
        assert spool.quarantined is None


async def test_new_id_survives_a_restart(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        old = spool.spool_id
        spool.reset_id()
        new = spool.spool_id
        assert new != old
    async with open_spool(tmp_path) as spool:
        assert spool.spool_id == new


async def test_nothing_is_durable_after_a_disk_failure(tmp_path: Path) -> None:
    failures: list[SpoolFailed] = []
    spool = Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=0.005)
    spool.start(failures.append)
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("DROP TABLE chunks")
    db.close()
    with pytest.raises(SpoolFailed, match="what came after the last sync is not received"):
        await spool.durable(spool.append(fact()))
    assert len(failures) == 1
    assert spool.synced == 0
    await spool.close()


def test_start_on_a_full_disk_fails_with_a_retryable_exit_code(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1 << 20) as folder, fill_disk(folder):
        with pytest.raises(SpoolFailed, match="spool: No space left on device; fix that"):
            Spool(folder / "spool", max_bytes=1 << 30, sync_every_seconds=1)
        with pytest.raises(DatabaseUnavailable, match="No space left on device; free some space there"):
            lock_database(f"sqlite:///{folder}/ingestor.db")
    no_restart = {77, 78, 2}  # in the systemd unit
    assert no_restart.isdisjoint({SpoolFailed.exit_code, DatabaseUnavailable.exit_code})


async def test_entries_become_durable_while_the_ballast_finds_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    def find_none(_handle: int, _offset: int, _size: int) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 50:  # so that a spool that repeats this for ever fails the test instead of hanging
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "posix_fallocate", find_none)
    async with open_spool(tmp_path) as spool:
        await spool.durable(spool.append(fact()))
        assert attempts < 5


def test_ballast_is_not_held_on_a_disk_without_inodes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64 << 20, files=2) as folder:
        (folder / "last inode").touch()
        assert not Ballast(folder / "ballast").held
        (folder / "last inode").unlink()
        assert Ballast(folder / "ballast").held


async def test_lone_surrogates_are_stored_as_escapes(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        spool.append(frame('"\ud800"'))
        await spool.durable(spool.append(fact(detail={"\udfff": ["\ud800"]})))
        (_, stored_frame), (_, stored_fact) = spool.read(0, max_entries=9)
    assert stored_frame == frame('"\\ud800"')
    assert stored_fact == fact(detail={"\\udfff": ["\\ud800"]})


async def test_durable_entries_survive_a_kill(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from ingestor.spool.spool import Spool\n"
        "from tests.support.entries import fact\n"
        "async def main():\n"
        "    spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30, sync_every_seconds=0.001)\n"
        "    spool.start(print)\n"
        "    for _ in range(400): await spool.durable(spool.append(fact()))\n"
        "    spool.append(fact())\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, str(tmp_path)], check=False, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == -9
    async with open_spool(tmp_path) as spool:
        assert spool.quarantined is None
        assert spool.synced in (400, 401)
