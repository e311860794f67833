"""What a spool says after some of its files were removed, damaged or replaced by older ones: crashed, lost, neither."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from ingestor.config import load
from ingestor.core.clock import ClockReading, boot_id, boottime, read_clocks
from ingestor.daemon import factory
from ingestor.errors import SpoolFailed
from ingestor.spool import ballast, chunk_store, header
from ingestor.spool.chunk_store import pack
from ingestor.spool.mark import MARK, Mark, read_mark, write_mark
from ingestor.spool.salvage import SalvagedSpool
from ingestor.spool.spool import Spool
from tests.support.entries import fact
from tests.support.writers import raise_failure

REPLACED = "was replaced or has lost its last run"
ENDS_EARLY = "but 6 was durable"
CLEAN_HEAD, MARKED, HEAD = 3, 6, 9  # of the first run; at the last heartbeat of the second; when the second was killed


@pytest.fixture(autouse=True, scope="module")
def small_ballast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ballast, "BALLAST_BYTES", 4096)
        yield


@asynccontextmanager
async def open_spool(folder: Path) -> AsyncIterator[Spool]:
    spool = Spool(folder, max_bytes=1 << 30, sync_every_seconds=0)
    spool.start(raise_failure)
    try:
        yield spool
    finally:
        await spool.close()


async def receive(spool: Spool, folder: Path, upto: int, heartbeat_us: int = 0) -> None:
    while spool.head < upto:
        await spool.durable(spool.append(fact()))
    if heartbeat_us:
        spool.heartbeat(heartbeat_us)
        while (mark := read_mark(folder / MARK)) is None or mark.at_us != heartbeat_us:
            await asyncio.sleep(0.0005)


def copy_folder(folder: Path, copy: Path) -> None:
    """Copy without the shared memory, which belongs to the running process."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm", "ballast"))


class KilledSpool:
    """The folder of a spool whose second run was killed, and a copy of what the first one left."""

    def __init__(self, folder: Path, older: Path, wal_bytes: tuple[int, int]) -> None:
        self.folder, self.older = folder, older
        self.mark, self.db, self.wal = folder / MARK, folder / "spool.db", folder / "spool.db-wal"
        self.marked_bytes, self.last_bytes = wal_bytes  # of the WAL after the heartbeat, and before the last entry

    def truncate_wal(self, size: int) -> None:
        os.truncate(self.wal, size)

    def flip_wal(self, at: int) -> None:
        content = bytearray(self.wal.read_bytes())
        content[at] ^= 1
        self.wal.write_bytes(content)

    def put_older(self) -> None:
        """Put back the spool's file of the first run, but not its mark."""
        self.remove(self.db, self.wal)
        shutil.copy(self.older / "spool.db", self.db)

    def remove(self, *files: Path) -> None:
        for file in files:
            file.unlink()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, int]]:
    top = tmp_path_factory.mktemp("template")

    async def make() -> tuple[int, int]:
        live = top / "live"
        async with open_spool(live) as spool:
            await receive(spool, live, CLEAN_HEAD, 1_000)
        copy_folder(live, top / "older")
        async with open_spool(live) as spool:
            await receive(spool, live, MARKED, 2_000)
            marked_bytes = (live / "spool.db-wal").stat().st_size
            await receive(spool, live, HEAD - 1)
            last_bytes = (live / "spool.db-wal").stat().st_size
            await receive(spool, live, HEAD)
            copy_folder(live, top / "killed")
        return marked_bytes, last_bytes

    return top, asyncio.run(make())


@pytest.fixture
def killed(tmp_path: Path, template: tuple[Path, tuple[int, int]]) -> KilledSpool:
    top, wal_bytes = template
    copy_folder(top / "killed", tmp_path / "killed")
    return KilledSpool(tmp_path / "killed", top / "older", wal_bytes)


# (what happened to the folder after the kill, crashed, why entries are lost, the newest entry, heartbeat to believe)
DAMAGES: dict[str, tuple[Callable[[KilledSpool], object], bool, str | None, int, int]] = {
    "nothing": (lambda k: None, True, None, HEAD, 2_000),
    "lock removed": (lambda k: k.remove(k.folder / "lock"), True, None, HEAD, 2_000),
    "lock says released": (lambda k: (k.folder / "lock").write_bytes(b"\n" * 16), True, None, HEAD, 2_000),
    "mark removed": (lambda k: k.remove(k.mark), True, None, HEAD, 2_000),
    "mark cut short": (lambda k: os.truncate(k.mark, 20), True, None, HEAD, 2_000),
    "mark empty": (lambda k: os.truncate(k.mark, 0), True, None, HEAD, 2_000),
    "mark of nonsense": (lambda k: k.mark.write_bytes(b"\xff" * 128), True, None, HEAD, 2_000),
    "mark of another spool": (lambda k: write_mark(k.mark, Mark("f" * 32, 50, 1_500)), True, REPLACED, HEAD, 1_500),
    "last entry cut off": (lambda k: k.truncate_wal(k.last_bytes), True, None, HEAD - 1, 2_000),
    "bit of the last entry": (lambda k: k.flip_wal(k.last_bytes + 60), True, None, HEAD - 1, 2_000),
    "cut before the heartbeat": (lambda k: k.truncate_wal(k.marked_bytes // 2), True, ENDS_EARLY, -1, 1_000),
    "bit before the heartbeat": (lambda k: k.flip_wal(k.marked_bytes // 2), False, "unreadable", 0, 2_000),
    "bit at the begin": (lambda k: k.flip_wal(40), False, "unreadable", 0, 2_000),
    "bit of the WAL's header": (lambda k: k.flip_wal(12), False, "unreadable", 0, 2_000),
    "WAL empty": (lambda k: k.truncate_wal(0), False, REPLACED, CLEAN_HEAD, 1_000),
    "WAL removed": (lambda k: k.remove(k.wal), False, REPLACED, CLEAN_HEAD, 1_000),
    "WAL and mark removed": (lambda k: k.remove(k.wal, k.mark), False, None, CLEAN_HEAD, 1_000),
    "file removed": (lambda k: k.remove(k.db), False, REPLACED, 0, 2_000),
    "file empty": (lambda k: os.truncate(k.db, 0), False, "unreadable", 0, 2_000),
    "file and WAL removed": (lambda k: k.remove(k.db, k.wal), False, REPLACED, 0, 2_000),
    "file no database": (lambda k: k.db.write_bytes(b"?" * 4096), False, "unreadable", 0, 2_000),
    "all but the lock removed": (lambda k: k.remove(k.db, k.wal, k.mark), False, None, 0, 0),
    "folder removed": (lambda k: shutil.rmtree(k.folder), False, None, 0, 0),
    "older file": (KilledSpool.put_older, False, REPLACED, CLEAN_HEAD, 1_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_killed_spool_says_what_is_lost(killed: KilledSpool, damage: str) -> None:
    act, crashed, loss, head, believable_us = DAMAGES[damage]
    act(killed)
    async with open_spool(killed.folder) as spool:
        found = (spool.crashed, spool.believable_us or 0)
        assert found == (crashed, believable_us)
        assert (spool.loss is None) if loss is None else (loss in (spool.loss or ""))
        assert spool.opened_head == head if head >= 0 else CLEAN_HEAD <= spool.opened_head < MARKED


@pytest.mark.parametrize(
    "damage", ["bit before the heartbeat", "bit at the begin", "bit of the WAL's header", "file empty"]
)
async def test_entries_behind_a_damage_of_the_wal_are_set_aside(killed: KilledSpool, damage: str) -> None:
    DAMAGES[damage][0](killed)
    before = SalvagedSpool(killed.folder).readable
    assert before[-1].last_seq == HEAD
    async with open_spool(killed.folder) as spool:
        assert spool.quarantined
        assert SalvagedSpool(spool.quarantined).readable == before


async def test_set_aside_spool_without_a_header_is_known_by_the_mark(killed: KilledSpool) -> None:
    mark = read_mark(killed.mark)
    killed.remove(killed.wal)
    killed.db.write_bytes(b"?" * 4096)
    async with open_spool(killed.folder) as spool:
        assert spool.quarantined and mark
        assert SalvagedSpool(spool.quarantined).run_ids == {mark.run_id}


async def test_loss_is_reported_until_an_entry_reports_it(killed: KilledSpool) -> None:
    killed.remove(killed.wal)
    for _ in range(2):
        async with open_spool(killed.folder) as spool:
            assert spool.found_loss
            spool.heartbeat(3_000)
    async with open_spool(killed.folder) as spool:
        await receive(spool, killed.folder, spool.head + 1, 4_000)
    async with open_spool(killed.folder) as spool:
        assert spool.found_loss is None


async def test_restored_copy_of_the_whole_folder_is_consistent(killed: KilledSpool) -> None:
    async with open_spool(killed.older) as spool:
        assert (spool.loss, spool.crashed) == (None, False)


async def test_spool_knows_its_own_runs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "KNOWN_RUNS", 3)
    runs = []
    for _ in range(5):
        async with open_spool(tmp_path) as spool:
            runs.append(spool.run_id)
            assert [spool.knows_run(run) for run in runs][-3:] == [True] * len(runs[-3:])
            spool.append(fact())
            spool.ack(spool.head)
    assert [spool.knows_run(run) for run in runs] == [False, False, True, True, True]
    assert spool.knows_run("")
    assert not spool.knows_run("f" * 32)


async def test_heartbeat_says_when_connections_were_heard(tmp_path: Path) -> None:
    heard = {("/real-time/crowd-sentiment", '{"period":"\ud800"}'): 900}
    async with open_spool(tmp_path) as spool:
        before = boottime()
        spool.heartbeat(1_000, heard)
    async with open_spool(tmp_path) as spool:
        found = spool.last_heartbeat
    assert found is not None
    assert found._replace(boottime=0.0) == (1_000, 0, heard, 0.0, boot_id())
    assert before <= found.boottime <= boottime()


# -- the format of the release before


def make_format_2(folder: Path, *, lock: bytes | None) -> None:
    folder.mkdir()
    with closing(sqlite3.connect(folder / "spool.db", isolation_level=None)) as db:
        db.executescript(
            "PRAGMA journal_mode=WAL;"
            "CREATE TABLE head (format INTEGER NOT NULL, spool_id TEXT NOT NULL, next_seq INTEGER NOT NULL,"
            " acked INTEGER NOT NULL, live_bytes INTEGER NOT NULL, heartbeat_us INTEGER, heartbeat_seq INTEGER);"
            "CREATE TABLE chunks (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, size INTEGER NOT NULL,"
            " crc INTEGER NOT NULL, body BLOB NOT NULL);"
        )
        chunk = pack(4, [fact(at_us=1), fact(at_us=2)])
        db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", chunk)
        db.execute("INSERT INTO head VALUES (2, ?, 6, 3, ?, 1000, 5)", ("a" * 32, chunk[2]))
    if lock is not None:
        (folder / "lock").write_bytes(lock)


@pytest.mark.parametrize(
    ("lock", "crashed"), [(b"\n234           \n", False), (b"1234           \n", True), (None, True)]
)
async def test_spool_of_the_release_before_goes_on_with_its_backlog(
    tmp_path: Path, lock: bytes | None, crashed: bool
) -> None:
    make_format_2(tmp_path / "spool", lock=lock)
    async with open_spool(tmp_path / "spool") as spool:
        assert (spool.loss, spool.crashed, spool.spool_id) == (None, crashed, "a" * 32)
        assert (spool.opened_head, spool.acked, spool.entries) == (5, 3, 2)
        assert spool.last_heartbeat is not None
        assert spool.last_heartbeat[:2] == (1000, 5)
        assert spool.read(3, max_entries=9) == [(4, fact(at_us=1)), (5, fact(at_us=2))]
        assert spool.append(fact()) == 6
    async with open_spool(tmp_path / "spool") as spool:
        assert (spool.opened_head, spool.crashed) == (6, False)


def test_interrupted_upgrade_leaves_the_older_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_format_2(tmp_path / "spool", lock=None)
    monkeypatch.setattr(chunk_store, "begin_run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chunk_store.ChunkWriter(tmp_path / "spool" / "spool.db")
    with closing(sqlite3.connect(tmp_path / "spool" / "spool.db")) as db:
        assert db.execute("SELECT format, next_seq, heartbeat_seq FROM head").fetchall() == [(2, 6, 5)]


async def test_stop_that_fails_is_no_clean_end(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=0)
    spool.start(lambda _: None)
    await spool.durable(spool.append(fact()))
    with closing(sqlite3.connect(tmp_path / "spool.db", isolation_level=None)) as db:
        db.execute("ALTER TABLE chunks RENAME TO moved")
    with pytest.raises(SpoolFailed):
        await spool.durable(spool.append(fact()))
    await spool.close()
    with closing(sqlite3.connect(tmp_path / "spool.db", isolation_level=None)) as db:
        db.execute("ALTER TABLE moved RENAME TO chunks")
    async with open_spool(tmp_path) as spool:
        assert spool.crashed


# -- what coverage records


async def test_lost_entries_end_coverage_at_the_heartbeat_to_believe(
    killed: KilledSpool, write_config_for: Callable[..., Path]
) -> None:
    killed.remove(killed.wal)
    config = load(write_config_for(), {})
    async with open_spool(killed.folder) as spool:
        lost, _, started = factory.startup_facts(spool, config, read_clocks())
    assert (lost.kind, lost.state, lost.since_us) == ("lost", "lost", 1_000)
    assert lost.subscriptions == tuple(subscription.key for subscription in config.subscriptions)
    # Subscriptions that the config no longer has were not live either since then.
    assert (started.kind, started.others, started.since_us) == ("started", True, 1_000)


async def test_loss_found_after_the_clock_was_set_back_begins_now(
    killed: KilledSpool, write_config_for: Callable[..., Path]
) -> None:
    killed.remove(killed.wal)
    async with open_spool(killed.folder) as spool:
        lost, _, _ = factory.startup_facts(spool, load(write_config_for(), {}), ClockReading(500, 0.0))
    assert lost.since_us == 500
