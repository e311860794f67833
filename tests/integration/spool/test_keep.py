"""What the spool keeps after it was acknowledged, when it drops that, and how it goes back to it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from ingestor.core.clock import boot_id, boottime
from ingestor.core.entries import Frame, count_entries, split_into_entries
from ingestor.spool import chunk_store
from ingestor.spool.chunk_store import ChunkReader, ChunkWriter, SpoolUnreadable, compress, expand, pack, unpack
from ingestor.spool.header import SpoolHeartbeat
from ingestor.spool.keep import KEEP_NOTHING, Keep
from ingestor.spool.salvage import SalvagedSpool
from ingestor.spool.spool import Spool
from tests.support.entries import frame
from tests.support.faulty_disks import fill_disk, small_disk
from tests.support.writers import put, raise_failure

DAY = 86_400.0
LONG = Keep(DAY, 1 << 40)
ENTRY_BYTES = 2_000


def entry(number: int) -> Frame:
    """Return a frame that does not compress, so that what is kept has a known size."""
    return frame(os.urandom(ENTRY_BYTES // 2).hex(), received_us=number)


def row(seq: int) -> chunk_store.ChunkRow:
    return pack(seq, [entry(seq)])


def beat(at: float, *, boot: str | None = None) -> SpoolHeartbeat:
    """Return a heartbeat at a boottime. The wall clock says nonsense: nothing may depend on it."""
    return SpoolHeartbeat(-1_000_000_000, 0, {}, at, boot_id() if boot is None else boot)


@asynccontextmanager
async def open_spool(
    folder: Path, keep: Keep = LONG, *, max_bytes: int = 1 << 30, sync_every_seconds: float = 0.001
) -> AsyncIterator[Spool]:
    spool = Spool(folder, max_bytes=max_bytes, sync_every_seconds=sync_every_seconds, keep=keep)
    spool.start(raise_failure)
    try:
        yield spool
    finally:
        await spool.close()


@contextmanager
def open_file(path: Path, keep: Keep = LONG) -> Iterator[ChunkWriter]:
    with closing(ChunkWriter(path, keep=keep)) as file:
        yield file


async def settle(spool: Spool) -> None:
    """Wait until the spool's thread has written what was acknowledged."""
    spool.purge_acknowledged()
    await asyncio.to_thread(spool.note_server, "settled", 1)


def stored(path: Path) -> list[tuple[int, int, int]]:
    """Return (first_seq, last_seq, size) of the chunks."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT first_seq, last_seq, size FROM chunks ORDER BY first_seq").fetchall()


# -- what is dropped, and when


def test_oldest_chunks_are_dropped_as_soon_as_more_than_the_size_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    keep = Keep(DAY, 10 * row(1)[2] + 500)
    with open_file(path, keep) as file:
        for seq in range(1, 101):
            file.write([row(seq)], acked=seq - 1)
            assert file.header.kept_bytes == sum(size for _, last_seq, size in stored(path) if last_seq < seq)
        assert [first_seq for first_seq, _, _ in stored(path)] == list(range(90, 101))


@pytest.mark.parametrize("keep", [KEEP_NOTHING, Keep(0, 1 << 30), Keep(DAY, 0)])
def test_nothing_is_kept_if_either_limit_is_zero(tmp_path: Path, keep: Keep) -> None:
    with open_file(tmp_path / "spool.db", keep) as file:
        file.write([row(1), row(2)], acked=0)
        file.write([row(3)], acked=2)
        assert (stored(file.path), file.header.kept_bytes) == ([(3, 3, row(3)[2])], 0)


def test_lower_limit_takes_effect_at_the_next_start_in_bounded_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_store, "DROP_BYTES", 3 * ENTRY_BYTES)
    path = tmp_path / "spool.db"
    with open_file(path) as file:
        file.write([row(seq) for seq in range(1, 11)], acked=0)
        file.write([], acked=10)
    counts = []
    with open_file(path, KEEP_NOTHING) as file:
        for seq in range(11, 15):
            file.write([row(seq)], acked=10)
            counts.append(sum(last_seq <= 10 for _, last_seq, _ in stored(path)))
    assert counts == [7, 4, 1, 0]


def test_age_counts_from_the_acknowledgement_on_a_clock_of_its_own(tmp_path: Path) -> None:
    path, start = tmp_path / "spool.db", boottime()
    with open_file(path, Keep(3_600, 1 << 30)) as file:
        file.write([row(1), row(2), row(3)], acked=1, heartbeat=beat(start))
        file.write([], acked=2, heartbeat=beat(start + 1_000))
        file.write([], acked=2, heartbeat=beat(start + 3_500))
        assert len(stored(path)) == 3
        file.write([], acked=2, heartbeat=beat(start + 3_601))
        assert [first_seq for first_seq, _, _ in stored(path)] == [2, 3]
        file.write([], acked=2, heartbeat=beat(start + 4_601))
        file.write([], acked=2, heartbeat=beat(start + 1e9))
        assert [first_seq for first_seq, _, _ in stored(path)] == [3]  # never acknowledged, however old


@pytest.mark.parametrize(
    ("boot", "dropped"), [(None, True), ("another", False), ("", False)], ids=["same boot", "another boot", "unknown"]
)
def test_down_time_counts_only_within_one_boot(tmp_path: Path, boot: str | None, dropped: bool) -> None:
    path, start = tmp_path / "spool.db", boottime() - 10_000
    with open_file(path, Keep(3_600, 1 << 30)) as file:
        file.write([row(1), row(2)], acked=1, heartbeat=beat(start, boot=boot))
    with open_file(path, Keep(3_600, 1 << 30)) as file:  # 10,000 s later by the clock of the machine
        file.write([], acked=1, heartbeat=beat(boottime()))
        assert len(stored(path)) == (1 if dropped else 2)
        file.write([], acked=1, heartbeat=beat(boottime() + 3_601))
        assert len(stored(path)) == 1


def test_clock_goes_on_from_run_to_run(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    for run in range(5):
        with open_file(path, Keep(3_600, 1 << 30)) as file:
            if not run:
                file.write([row(1)], acked=0)
            file.write([], acked=1, heartbeat=beat(boottime() + 1_000, boot=f"boot {run}"))
            assert bool(stored(path)) == (run < 4), run


def test_times_of_acknowledgements_are_bounded(tmp_path: Path) -> None:
    with open_file(tmp_path / "spool.db", Keep(365 * DAY, 1 << 30)) as file:
        file._db.execute("PRAGMA synchronous=OFF")
        start = boottime()
        file.write([pack(seq, [frame([])]) for seq in range(1, 1_501)], acked=0)
        for seq in range(1, 1_501):
            file.write([], acked=seq, heartbeat=beat(start + seq * DAY / 3))
        points = file._db.execute("SELECT count(*) FROM ack_times").fetchone()[0]
        assert 1_000 < points <= 1_442


def test_cost_of_an_acknowledgement_is_independent_of_what_is_kept(tmp_path: Path) -> None:
    costs = []
    for kept in (100, 10_000):
        with open_file(tmp_path / f"{kept}.db") as file:
            file.write([pack(seq, [frame([])]) for seq in range(1, kept + 21)], acked=0)
            for _ in range(2):  # what there was no time to compress is not compressed later
                file.write([], acked=kept, heartbeat=beat(boottime()))
            steps: list[None] = []
            file._db.set_progress_handler(lambda steps=steps: steps.append(None), 1)
            file.write([], acked=kept + 10, heartbeat=beat(boottime()))
            costs.append(len(steps))
    assert costs[1] < 1.5 * costs[0], costs


# -- going back


async def test_rewound_entries_are_written_again_and_count_as_neither_live_nor_kept(tmp_path: Path) -> None:
    entries = [entry(number) for number in range(1, 31)]
    async with open_spool(tmp_path, max_bytes=20 * ENTRY_BYTES) as spool:
        for number in range(30):
            await put(spool, entries[number])
            spool.ack(number)
        spool.ack(30)
        await settle(spool)
        kept = spool.kept_bytes
        assert (spool.live_bytes, kept > 30 * ENTRY_BYTES, spool.first_seq()) == (0, True, 1)
        assert await asyncio.to_thread(spool.rewind, 10)
        assert (spool.acked, spool.highest_acked, spool.entries, spool.live_bytes) == (10, 30, 20, 0)
        assert kept * 0.3 < spool.kept_bytes < kept * 0.4
        assert not spool.full
        assert spool.read(10, max_entries=99) == list(enumerate(entries[10:], 11))
    async with open_spool(tmp_path, max_bytes=20 * ENTRY_BYTES) as spool:
        assert (spool.acked, spool.highest_acked, spool.live_bytes) == (10, 30, 0)
        spool.ack(30)
        await settle(spool)
        assert (spool.kept_bytes, spool.entries) == (kept, 0)


@pytest.mark.parametrize("keep", [Keep(DAY, 1), Keep(1, 1 << 30), KEEP_NOTHING], ids=["size", "time", "nothing"])
def test_rewound_entries_are_not_dropped_before_they_are_acknowledged_again(tmp_path: Path, keep: Keep) -> None:
    path, start = tmp_path / "spool.db", boottime()
    with open_file(path) as file:
        file.write([row(seq) for seq in range(1, 11)], acked=0)
        file.write([], acked=10, heartbeat=beat(start))
        assert file.rewind(4)
    with open_file(path, keep) as file:
        for at in (10.0, 1e6):
            file.write([], acked=4, heartbeat=beat(start + at))
            while file.give_back(4):
                pass
        assert [first_seq for first_seq, _, _ in stored(path)] == list(range(5, 11))
        file.write([], acked=6)
        while file.give_back(6):
            pass
        assert [first_seq for first_seq, _, _ in stored(path)] == list(range(7, 11))


def test_age_of_rewound_entries_counts_from_their_second_acknowledgement(tmp_path: Path) -> None:
    path, start = tmp_path / "spool.db", boottime()
    with open_file(path, Keep(3_600, 1 << 30)) as file:
        file.write([row(1), row(2), row(3)], acked=3, heartbeat=beat(start))
        assert file.rewind(1)
        file.write([], acked=1, heartbeat=beat(start + 3_000))
        file.write([], acked=3, heartbeat=beat(start + 3_500))
        file.write([], acked=3, heartbeat=beat(start + 7_000))
        assert [first_seq for first_seq, _, _ in stored(path)] == [2, 3]
        file.write([], acked=3, heartbeat=beat(start + 7_101))
        assert stored(path) == []


async def test_rewind_behind_what_is_kept_changes_nothing(tmp_path: Path) -> None:
    async with open_spool(tmp_path, Keep(DAY, 5 * ENTRY_BYTES)) as spool:
        for number in range(1, 21):
            await put(spool, entry(number))
            spool.ack(number)
        await settle(spool)
        first_seq = spool.first_seq()
        assert first_seq > 10
        assert not await asyncio.to_thread(spool.rewind, first_seq - 2)
        assert (spool.acked, spool.highest_acked) == (20, 20)
        assert await asyncio.to_thread(spool.rewind, first_seq - 1)
        assert spool.acked == first_seq - 1


async def test_first_seq_is_not_dropped_before_the_next_acknowledgement(tmp_path: Path) -> None:
    async with open_spool(tmp_path, Keep(DAY, 5 * ENTRY_BYTES)) as spool:
        for number in range(1, 11):
            await put(spool, entry(number))
        spool.ack(4)
        await settle(spool)
        first_seq = spool.first_seq()
        spool.acked = 10  # as if the acknowledgement had come in between
        await settle(spool)
        assert spool.first_seq() == first_seq
        spool.ack(10)
        await settle(spool)
        assert spool.first_seq() > first_seq


async def test_rewind_and_drop_in_the_middle_of_a_chunk(tmp_path: Path) -> None:
    entries = [entry(number) for number in range(1, 11)]
    async with open_spool(tmp_path, sync_every_seconds=0.05) as spool:
        await put(spool, *entries)  # one chunk
        spool.ack(7)
        await settle(spool)
        assert spool.live_bytes > 0 == spool.kept_bytes
        assert await asyncio.to_thread(spool.rewind, 3)
        assert spool.read(spool.acked, max_entries=99) == list(enumerate(entries[3:], 4))
        spool.ack(10)
        await settle(spool)
        assert spool.live_bytes == 0 < spool.kept_bytes


async def test_new_id_without_keep_forgets_what_was_acknowledged(tmp_path: Path) -> None:
    async with open_spool(tmp_path, sync_every_seconds=0.05) as spool:
        await put(spool, *[entry(number) for number in range(1, 11)])
        spool.ack(7)
        await asyncio.to_thread(spool.reset_id)
        assert spool.first_seq() == 1
        await asyncio.to_thread(lambda: spool.reset_id(keep=False))
        assert spool.first_seq() == 8
        assert not await asyncio.to_thread(spool.rewind, 6)
        spool_id = spool.spool_id
    async with open_spool(tmp_path) as spool:
        assert (spool.first_seq(), spool.acked, spool.spool_id) == (8, 7, spool_id)
        spool.ack(10)
        await settle(spool)
        assert await asyncio.to_thread(spool.rewind, 7)


async def test_server_is_remembered(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        assert spool.server is None
        await asyncio.to_thread(spool.note_server, "7300000000000000001", 3)
    async with open_spool(tmp_path) as spool:
        assert spool.server == ("7300000000000000001", 3)


def test_runs_are_known_as_long_as_the_database_may_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestor.spool.header.KNOWN_RUNS", 3)
    runs = []
    for seq in range(1, 21):
        with open_file(tmp_path / "spool.db", Keep(DAY, 8 * ENTRY_BYTES)) as file:
            runs.append(file.run_id)
            file.write([row(seq)], acked=seq - 1)
            file.write([], acked=seq)
    with open_file(tmp_path / "spool.db", Keep(DAY, 8 * ENTRY_BYTES)) as file:
        first_seq = stored(file.path)[0][0]
        assert first_seq > 10
        lowest = first_seq - 1  # a position that the run with this number has committed
        assert [run for run in runs[lowest - 1 :] if run not in file.left_by] == []
        assert runs[0] not in file.left_by


# -- compression


def test_acknowledged_chunks_are_compressed_and_read_like_others(tmp_path: Path) -> None:
    entries = [frame([{"ticker": "AAPL", "value": i}], received_us=i) for i in range(100)]
    path = tmp_path / "spool.db"
    with open_file(path) as file:
        file.write([pack(1, entries)], acked=0)
        size = file.header.live_bytes
        file.write([pack(101, entries)], acked=100, heartbeat=beat(boottime()))
        kept, _ = stored(path)
        assert kept[2] == file.header.kept_bytes < size / 4
        assert file.rewind(40)
        assert (file.header.kept_bytes, file.header.live_bytes) == (0, size)
        assert SalvagedSpool(tmp_path).readable == [(1, 200)]
        assert list(SalvagedSpool(tmp_path).read()) == list(enumerate([*entries, *entries], 1))
        with closing(ChunkReader(path)) as reader:
            read = list(split_into_entries(reader.read_items(40, max_entries=1_000, max_bytes=1 << 20)))
            assert read == list(enumerate([*entries, *entries], 1))[40:]
            [(seq, item)] = reader.read_items(0, max_entries=1_000, max_bytes=size * 3 // 2)  # as large as before
            assert (seq, count_entries(item)) == (1, 100)


def test_compression_takes_a_bounded_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_store, "COMPRESS_SECONDS", 1e-9)
    with open_file(tmp_path / "spool.db") as file:
        for seq in range(1, 6):
            file.write([pack(seq, [frame("x" * 10_000)])], acked=seq - 1, heartbeat=beat(boottime()))
            for _ in range(20):
                file.write([], acked=seq)
        sizes = [size < 1_000 for *_, size in stored(file.path)]
        assert sizes.count(True) <= 5  # at most one for each heartbeat


@pytest.mark.parametrize("body", [b"", b"\x78", b"\x78\x01garbage", b"\x78\x01" + bytes(20)])
def test_chunk_that_only_looks_compressed_is_unreadable(body: bytes) -> None:
    with pytest.raises(SpoolUnreadable):
        unpack((1, 1, len(body), zlib.crc32(body), body))


def test_chunk_that_does_not_get_smaller_stays_as_it_is() -> None:
    small, random = pack(1, [frame("x")]), pack(1, [frame(os.urandom(5_000).decode("latin-1"))])
    assert compress(small) is small
    once = compress(random)
    assert compress(once) is once
    assert expand(once) == random


# -- damage, upgrades


def test_damage_of_what_is_kept_does_not_hinder_a_start(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with open_file(path) as file:
        file.write([row(seq) for seq in range(1, 6)], acked=0)
        file.write([], acked=5)
        file._db.execute("UPDATE chunks SET body = zeroblob(length(body))")
    with open_file(path) as file:
        file.write([row(6)], acked=5, heartbeat=beat(boottime()))
        assert file.header.next_seq == 7
        file._db.execute("UPDATE chunks SET body = zeroblob(length(body)) WHERE first_seq = 6")
    with pytest.raises(SpoolUnreadable, match="spool entries 6 to 6"):
        ChunkWriter(path, keep=LONG)


def downgrade(path: Path, version: int) -> None:
    """Give the file the format of an earlier release."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TABLE old AS SELECT 3 AS format, spool_id, next_seq, acked, live_bytes, heartbeat, clean FROM head"
        )
        if version == 2:
            db.execute("DROP TABLE old")
            db.execute("CREATE TABLE old AS SELECT 2 AS format, spool_id, next_seq, acked, live_bytes, 5, 1 FROM head")
            db.execute("DROP TABLE runs")
        db.execute("DELETE FROM chunks WHERE last_seq <= (SELECT acked FROM head)")
        db.execute("DROP TABLE head")
        db.execute("ALTER TABLE old RENAME TO head")
        db.execute("DROP TABLE ack_times")
        db.commit()
        db.execute("PRAGMA auto_vacuum=NONE")
        db.execute("VACUUM")


@pytest.mark.parametrize("version", [2, 3])
async def test_spool_of_an_earlier_format_is_upgraded(tmp_path: Path, version: int) -> None:
    entries = [entry(number) for number in range(1, 11)]
    async with open_spool(tmp_path, KEEP_NOTHING) as spool:
        for item in entries:
            await put(spool, item)
        spool.ack(4)
        spool.heartbeat(5)
        await settle(spool)
        spool_id, live_bytes = spool.spool_id, spool.live_bytes
    downgrade(tmp_path / "spool.db", version)
    (tmp_path / "mark").unlink()
    async with open_spool(tmp_path) as spool:
        assert (spool.spool_id, spool.acked, spool.highest_acked, spool.head) == (spool_id, 4, 4, 10)
        assert (spool.live_bytes, spool.kept_bytes, spool.server) == (live_bytes, 0, None)
        assert spool.read(4, max_entries=99) == list(enumerate(entries[4:], 5))
        spool.ack(10)
        await settle(spool)
        assert (spool.live_bytes, spool.kept_bytes) == (0, live_bytes)
        assert await asyncio.to_thread(spool.rewind, 4)
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db:
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)


# -- full disks


async def fill(spool: Spool, entries: int, *, acked_behind: int) -> None:
    """Append entries of 500 kB, and acknowledge all but the last few."""
    for _ in range(entries):
        seq = spool.append(frame(os.urandom(250_000).hex()))
        await spool.durable(seq)
        assert not spool.disk_full
        assert not spool.full
        spool.ack(seq - acked_behind)


async def test_kept_entries_go_first_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    was_full: list[object] = []

    def note(spool: Spool, name: str, value: object) -> None:
        if name == "disk_full":
            was_full.append(value)
        object.__setattr__(spool, name, value)

    monkeypatch.setattr(Spool, "__setattr__", note, raising=False)
    with small_disk(tmp_path / "small", 112 << 20) as folder:
        async with open_spool(folder / "spool", Keep(DAY, 1 << 30), sync_every_seconds=0.001) as spool:
            await fill(spool, 300, acked_behind=5)  # 150 MB
            assert spool._ballast.held
            assert spool.kept_bytes > 10 << 20
            assert spool.read(spool.acked, max_entries=1)[0][0] == spool.acked + 1
            # Others fill the disk: what is kept goes, the connections stay, the data is there.
            with fill_disk(folder):
                await fill(spool, 60, acked_behind=5)
            assert spool.entries == 5
            assert True not in was_full  # not even for a moment: connections would be closed
        async with open_spool(folder / "spool", Keep(DAY, 1 << 30)) as spool:
            assert spool.quarantined is None
            first_seq = spool.acked + 1
            assert spool.read(spool.acked, max_entries=1)[0][0] == first_seq
            assert spool.head == 360


async def test_space_is_given_back_before_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 128 << 20) as folder:
        async with open_spool(folder / "spool", Keep(DAY, 1 << 30)) as spool:
            await fill(spool, 80, acked_behind=2)
            size = (folder / "spool" / "spool.db").stat().st_size
            kept = spool.kept_bytes
            leave_free(folder, 4 << 20)
            await beat_often(spool)
            assert spool.kept_bytes < kept
            assert (folder / "spool" / "spool.db").stat().st_size < size
            assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize > 12 << 20
            assert spool._ballast.held
            assert [seq for seq, _ in spool.read(spool.acked, max_entries=9)] == [79, 80]


async def test_file_that_cannot_shrink_drops_nothing_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_store, "CONVERT_BYTES", 0)
    with small_disk(tmp_path / "small", 128 << 20) as folder:
        async with open_spool(folder / "spool", Keep(DAY, 1 << 30)):
            pass
        with closing(sqlite3.connect(folder / "spool" / "spool.db")) as db:
            db.execute("PRAGMA auto_vacuum=NONE")
            db.execute("VACUUM")
        async with open_spool(folder / "spool", Keep(DAY, 1 << 30)) as spool:
            await fill(spool, 80, acked_behind=2)
            leave_free(folder, 8 << 20)
            await beat_often(spool)
            assert (spool.first_seq(), spool._ballast.held) == (1, True)
        (folder / "spool" / "ballast").unlink()
        leave_free(folder, 8 << 20)
        async with open_spool(folder / "spool", Keep(DAY, 1 << 30)) as spool:
            await beat_often(spool)
            assert (spool.first_seq(), spool.disk_full) == (1, True)


def leave_free(folder: Path, size_bytes: int) -> None:
    """Fill the disk but for this much."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    (folder / f"filler{free}").write_bytes(bytes(free - size_bytes))


async def beat_often(spool: Spool) -> None:
    for _ in range(20):
        spool.heartbeat(1)
        await settle(spool)


async def test_rewound_entries_outlast_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 112 << 20) as folder:
        async with open_spool(folder / "spool", Keep(DAY, 1 << 30)) as spool:
            await fill(spool, 60, acked_behind=0)
            assert await asyncio.to_thread(spool.rewind, 30)
            while not spool.disk_full:
                seq = spool.append(frame(os.urandom(250_000).hex()))
                while spool.synced < seq and not spool.disk_full:
                    await asyncio.sleep(0.001)
            assert spool.kept_bytes == 0
            assert spool.read(30, max_entries=1)[0][0] == 31
            assert spool.first_seq() == 31
            async with asyncio.timeout(20):
                while spool.disk_full:  # until the database has them again
                    spool.ack(spool.synced)
                    spool.heartbeat(1)
                    await asyncio.sleep(0.05)
                await spool.durable(spool.head)


# -- kills

KILLED = """
import asyncio, os, random, sys
from pathlib import Path
from ingestor.spool.keep import Keep
from ingestor.spool.spool import Spool
from tests.support.entries import frame

async def main(folder, seed):
    choose = random.Random(seed)
    keep = Keep(86400, choose.choice([0, 40_000, 1 << 30]))
    spool = Spool(folder, max_bytes=1 << 40, sync_every_seconds=0.001, keep=keep)
    spool.start(print)
    print("open", spool.head, spool.acked, spool.highest_acked, flush=True)
    while True:
        for _ in range(choose.randrange(1, 5)):
            spool.append(frame("x" * choose.randrange(3_000), received_us=spool.head + 1))
        await spool.durable(spool.head)
        print("synced", spool.synced, flush=True)
        choice = choose.random()
        if choice < 0.6:
            position = choose.randint(spool.acked, spool.synced)
            print("acks", position, flush=True)
            spool.ack(position)
        elif choice < 0.8:
            position = choose.randint(max(spool.first_seq() - 1, 0), spool.acked)
            print("rewinds", position, flush=True)
            done = await asyncio.to_thread(spool.rewind, position)
            print("rewound", position if done else spool.acked, flush=True)
        else:
            spool.heartbeat(1)
asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


class ReportedState:
    """What a killed process has printed about its spool, and what must be there afterwards."""

    def __init__(self) -> None:
        self.synced = 0
        self.lowest_acked = 0  # entries past it must be there
        self._before = 0

    def update(self, line: str) -> None:
        what, *numbers = line.split()
        number = int(numbers[0])
        if what == "open":
            self.synced = number
            self.lowest_acked = int(numbers[1])
        elif what == "synced":
            self.synced = number
        elif what == "rewinds":
            self._before, self.lowest_acked = self.lowest_acked, min(self.lowest_acked, number)
        else:  # acks, or rewound: durable, so nothing behind it may be needed again
            self.lowest_acked = number


@pytest.mark.parametrize("seed", range(2))
def test_killed_spool_has_everything_that_is_not_acknowledged(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), f"{seed} {round_}"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert process.stdout
        reported, lines = ReportedState(), choose.randrange(30, 200)
        for _ in range(lines):
            reported.update(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout:
            if line.endswith("\n"):  # the last one may have been cut off
                reported.update(line)
        process.wait()
        process.stdout.close()
        with closing(ChunkWriter(tmp_path / "spool.db", keep=LONG)) as file:
            assert file.header.next_seq - 1 >= reported.synced
            acked = file.header.acked
            chunks = stored(file.path)
            highest = file.header.highest_acked
            assert file.header.kept_bytes == sum(size for _, last_seq, size in chunks if last_seq <= acked)
            assert file.header.live_bytes == sum(size for _, last_seq, size in chunks if last_seq > highest)
        with closing(ChunkReader(tmp_path / "spool.db")) as reader:
            after, entries = min(acked, reported.lowest_acked), []
            while page := reader.read_items(after + len(entries), max_entries=500, max_bytes=1 << 20):
                entries += split_into_entries(page)
        assert [seq for seq, _ in entries] == list(range(after + 1, file.header.next_seq))
        assert all(isinstance(item, Frame) and item.received_us == seq for seq, item in entries)
