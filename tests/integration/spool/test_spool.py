from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest

from ingestor.daemon.factory import lock_database
from ingestor.errors import AlreadyLocked, DatabaseUnavailable, SpoolFailed
from ingestor.spool.ballast import Ballast
from ingestor.spool.chunk_store import FORMAT, ChunkWriter, pack
from ingestor.spool.spool import CHUNK_ENTRIES, Spool
from tests.support.entries import fact, frame
from tests.support.faulty_disks import full, small_disk


def _unexpected(failure: SpoolFailed) -> None:
    raise failure


@asynccontextmanager
async def opened(folder: Path, *, max_bytes: int = 1 << 30, sync_every_seconds: float = 0.005) -> AsyncIterator[Spool]:
    spool = Spool(folder, max_bytes=max_bytes, sync_every_seconds=sync_every_seconds)
    spool.start(_unexpected)
    try:
        yield spool
    finally:
        await spool.close()


async def test_what_goes_in_comes_out_in_order_under_gapless_seqs(tmp_path: Path) -> None:
    entries = [frame([], received_us=i) if i % 3 else fact(at_us=i) for i in range(2 * CHUNK_ENTRIES + 7)]
    async with opened(tmp_path) as spool:
        assert [spool.append(entry) for entry in entries] == list(range(1, len(entries) + 1))
        await spool.durable(len(entries))
        got = []
        while len(got) < len(entries):
            got += spool.read(len(got), max_entries=500)
    assert got == list(enumerate(entries, 1))


async def test_reading_is_bounded_but_one_chunk_always_fits(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        for _ in range(3 * CHUNK_ENTRIES):
            spool.append(fact())
        await spool.durable(3 * CHUNK_ENTRIES)
        assert len(spool.read(0, max_entries=1)) == CHUNK_ENTRIES
        assert spool.read(CHUNK_ENTRIES + 10, max_entries=1)[0][0] == CHUNK_ENTRIES + 11


async def test_seqs_go_on_after_a_restart_even_when_all_was_acknowledged(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        spool_id = spool.spool_id
        seq = [spool.append(fact()) for _ in range(5)][-1]
        await spool.durable(seq)
        spool.ack(seq)
    async with opened(tmp_path) as spool:
        assert (spool.spool_id, spool.entries, spool.read(0, max_entries=9)) == (spool_id, 0, [])
        assert spool.append(fact()) == seq + 1


async def test_an_acknowledged_chunk_is_forgotten_and_its_room_is_free(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.durable(spool.append(frame("x" * 5000)))
        assert spool.live_bytes > 5000
        spool.ack(1)
        await spool.durable(spool.append(fact()))
        assert spool.live_bytes < 5000
        assert [seq for seq, _ in spool.read(0, max_entries=9)] == [2]


def test_an_acknowledgement_costs_as_much_with_a_long_backlog_as_with_a_short_one(tmp_path: Path) -> None:
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


async def test_the_sync_waits_for_company_but_not_longer_than_told(tmp_path: Path) -> None:
    async with opened(tmp_path, sync_every_seconds=3600) as spool:
        seq = spool.append(fact())
        await asyncio.sleep(0)
        assert spool.synced == 0
        for _ in range(CHUNK_ENTRIES):
            spool.append(fact())
        await spool.durable(seq)  # a full chunk does not wait for the hour


async def test_too_much_unsynced_asks_the_reader_to_pause(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        for _ in range(34):
            spool.append(frame("x" * (1 << 20)))
        assert spool.congested
        await spool.wait_for_space()
        assert not spool.congested


async def test_a_full_spool_asks_the_reader_to_pause_until_there_is_real_room(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=100_000) as spool:
        for size, acked, full in ((90_000, 0, False), (20_000, 0, True), (0, 0, True), (0, 2, False)):
            spool.ack(acked)
            await spool.durable(spool.append(frame("x" * size)))
            assert spool.congested is full


async def test_who_waits_for_entries_can_be_called_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        waiting = asyncio.create_task(asyncio.to_thread(spool.wait, 0, 5))
        await asyncio.sleep(0.05)
        spool.wake()
        assert await asyncio.wait_for(waiting, 2) is False


async def test_a_heartbeat_says_up_to_where_all_was_received(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        spool.append(fact())
        spool.heartbeat(1234)
        await spool.durable(1)
        await spool.durable(spool.append(fact()))
        assert spool.durable_heartbeat == (1234, 1)
    async with opened(tmp_path) as spool:
        assert spool.last_heartbeat_us == 1234


async def test_a_heartbeat_is_not_on_the_disk_before_what_it_vouches_for(tmp_path: Path) -> None:
    async with opened(tmp_path, sync_every_seconds=3600) as spool:
        spool.append(fact())
        spool.heartbeat(1234)
        async with asyncio.timeout(5):
            await spool.durable(1)  # with the heartbeat, and not in an hour
        assert spool.durable_heartbeat == (1234, 1)


async def test_an_entry_synced_while_the_oldest_is_looked_for_does_not_count_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as spool:
        look, loop = spool._reader.first_seq, asyncio.get_running_loop()

        async def sync_one() -> None:
            await spool.durable(spool.append(fact()))

        def look_just_before() -> int | None:
            found = look()
            asyncio.run_coroutine_threadsafe(sync_one(), loop).result(5)
            return found

        monkeypatch.setattr(spool._reader, "first_seq", look_just_before)
        assert await asyncio.to_thread(spool.first_seq) == 1


async def test_a_second_process_is_told_who_holds_the_spool(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(AlreadyLocked, match=f"process {os.getpid()}"):
            Spool(tmp_path, max_bytes=1, sync_every_seconds=1)


async def test_the_folder_is_nobody_elses(tmp_path: Path) -> None:
    async with opened(tmp_path / "spool"):
        assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


async def test_a_spool_of_the_first_format_is_read_and_gone_on_with(tmp_path: Path) -> None:
    """Its chunks have a list of entries, each frame with all of its names."""
    entries = [frame([1], received_us=1), fact(at_us=2), frame([2], received_us=3, retry_of=4)]
    async with opened(tmp_path) as spool:
        await spool.durable([spool.append(entry) for entry in entries][-1])
        spool_id = spool.spool_id
    body = msgspec.msgpack.encode(entries)
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db, db:
        db.execute("UPDATE head SET format = 1")
        db.execute("DELETE FROM chunks")
        db.execute("INSERT INTO chunks VALUES (1, 3, ?, ?, ?)", (len(body), zlib.crc32(body), body))
    ChunkWriter(tmp_path / "spool.db").close()  # which writes nothing: a full disk, or the way back, is not in its way
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db:
        assert db.execute("SELECT format FROM head").fetchone() == (1,)
    async with opened(tmp_path) as spool:
        assert (spool.spool_id, spool.quarantined) == (spool_id, None)
        await spool.durable(spool.append(entries[0]))
        assert spool.read(0, max_entries=99) == list(enumerate([*entries, entries[0]], 1))
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db:  # a program that knows no other must not read on
        assert db.execute("SELECT format FROM head").fetchone() == (FORMAT,)


@pytest.mark.parametrize("damage", ["header", "body", "counter", "format"])
async def test_an_unreadable_spool_is_set_aside_and_a_new_one_begins(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path) as spool:
        old = spool.spool_id
        await spool.durable(spool.append(frame("x" * 100)))
    path = tmp_path / "spool.db"
    if damage == "header":
        path.write_bytes(b"not a database" * 1000)
    else:
        statement = {
            "body": "UPDATE chunks SET body = zeroblob(length(body))",
            "counter": "UPDATE head SET next_seq = 99",
            "format": "UPDATE head SET format = 99",
        }[damage]
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()
    async with opened(tmp_path) as spool:
        assert spool.spool_id != old
        assert spool.quarantined is not None
        assert (spool.quarantined / "spool.db").exists()
        assert spool.append(fact()) == 1


async def test_a_condemned_spool_is_set_aside_at_the_next_start_which_is_known_until_there_is_an_entry(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as spool:
        await spool.durable(spool.append(fact()))
        spool.mark_corrupt()
    async with opened(tmp_path) as spool:
        aside = spool.quarantined
        assert aside is not None
        assert spool.synced == 0
    async with opened(tmp_path) as spool:
        assert spool.quarantined == aside
        await spool.durable(spool.append(fact()))
    async with opened(tmp_path) as spool:
        assert spool.quarantined is None


async def test_a_new_name_lasts(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        old = spool.spool_id
        spool.reset_id()
        name = spool.spool_id
        assert name != old
    async with opened(tmp_path) as spool:
        assert spool.spool_id == name


async def test_a_disk_that_fails_acknowledges_nothing_more(tmp_path: Path) -> None:
    failures: list[SpoolFailed] = []
    spool = Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=0.005)
    spool.start(failures.append)
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("DROP TABLE chunks")
    db.close()
    with pytest.raises(SpoolFailed, match="nothing after the last sync counts"):
        await spool.durable(spool.append(fact()))
    assert len(failures) == 1
    assert spool.synced == 0
    await spool.close()


def test_where_there_was_never_room_it_says_so_and_is_tried_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1 << 20) as folder, full(folder):
        with pytest.raises(SpoolFailed, match="spool: No space left on device; mend that"):
            Spool(folder / "spool", max_bytes=1 << 30, sync_every_seconds=1)
        with pytest.raises(DatabaseUnavailable, match="No space left on device; free some space there"):
            lock_database(f"sqlite:///{folder}/ingestor.db")
    assert {77, 78, 2}.isdisjoint({SpoolFailed.exit_code, DatabaseUnavailable.exit_code})  # systemd gives up at those


def test_a_ballast_for_which_the_disk_has_no_name_left_is_not_held(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64 << 20, files=2) as folder:
        (folder / "the last").touch()
        assert not Ballast(folder / "ballast").held
        (folder / "the last").unlink()
        assert Ballast(folder / "ballast").held


async def test_text_that_is_not_unicode_is_kept_as_its_escapes(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        spool.append(frame('"\ud800"'))
        await spool.durable(spool.append(fact(detail={"\udfff": ["\ud800"]})))
        (_, kept), (_, told) = spool.read(0, max_entries=9)
    assert kept == frame('"\\ud800"')
    assert told == fact(detail={"\\udfff": ["\\ud800"]})


async def test_every_entry_that_was_durable_survives_a_kill(tmp_path: Path) -> None:
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
    async with opened(tmp_path) as spool:
        assert spool.quarantined is None
        assert spool.synced in (400, 401)
