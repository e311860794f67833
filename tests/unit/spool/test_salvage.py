"""What is left of a damaged spool is read: whatever is damaged, never a wrong entry, and all that is whole."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestor.core.entries import Entry, Fact, Frame
from ingestor.errors import SpoolFailed
from ingestor.spool.chunk_store import ChunkWriter, pack
from ingestor.spool.salvage import SalvagedSpool, SeqRange
from tests.support.entries import fact, frame, row

CHUNK, ENTRIES, PAGE = 5, 200, 4096


def entry(seq: int) -> Frame | Fact:
    if seq % 50 == 0:
        return fact(detail={"seq": seq})
    if seq in (102, 103):  # 20 kB: a chain of pages; the second repeats the first
        return frame([row(minute=seq + number) for number in range(300)])
    return frame([row(minute=seq)])


def write_spool(folder: Path) -> ChunkWriter:
    folder.mkdir()
    writer = ChunkWriter(folder / "spool.db")
    for first_seq in range(1, ENTRIES + 1, CHUNK):
        writer.write([pack(first_seq, [entry(seq) for seq in range(first_seq, first_seq + CHUNK)])], acked=0)
    return writer


@pytest.fixture(scope="module", params=["file", "WAL"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A spool that is not damaged: its content is in the file, or in the WAL that a kill has left."""
    folder = tmp_path_factory.mktemp("spool") / "sound"
    writer = write_spool(folder)
    if request.param == "WAL":
        shutil.copytree(folder, folder.with_name("killed"))
        writer.close()
        yield folder.with_name("killed")
        return
    writer.close()
    yield folder


def read(folder: Path) -> list[Entry]:
    """Return what is readable. It must be right, whatever the damage is."""
    spool = SalvagedSpool(folder)
    entries = list(spool.read())
    assert entries == [(seq, entry(seq)) for seq, _ in entries]
    ranges = [seq for first, last in spool.readable for seq in range(first, last + 1)]
    assert ranges == [seq for seq, _ in entries]
    return entries


def damaged_copy(sound: Path, folder: Path, at: int, content: bytes) -> Path:
    shutil.copytree(sound, folder)
    largest = max(folder.iterdir(), key=lambda file: file.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(at)
        file.write(content)
    return folder


def test_sound_spool_is_read_whole(sound: Path) -> None:
    assert len(read(sound)) == ENTRIES
    spool = SalvagedSpool(sound)
    assert (spool.next_seq, len(spool.spool_id or ""), len(spool.run_ids)) == (ENTRIES + 1, 32, 1)
    assert spool.readable_after(120) == [SeqRange(121, 200)]


def test_each_damaged_page_costs_only_what_it_contains(sound: Path, tmp_path: Path) -> None:
    size = max(file.stat().st_size for file in sound.iterdir())
    noise = random.Random(1).randbytes(PAGE)
    for number, at in enumerate(range(0, size, PAGE * max(1, size // PAGE // 15))):
        readable = len(read(damaged_copy(sound, tmp_path / str(number), at, noise[: size - at])))
        assert readable >= ENTRIES - 50


def test_spool_without_its_first_pages_is_read(sound: Path, tmp_path: Path) -> None:
    """They contain the schema, the header and the root of the tree: SQLite would read nothing."""
    folder = damaged_copy(sound, tmp_path / "copy", 0, bytes(3 * PAGE))
    assert len(read(folder)) >= ENTRIES - 50


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_never_yields_a_wrong_entry(sound: Path, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    size = max(file.stat().st_size for file in sound.iterdir())
    folder = damaged_copy(sound, tmp_path / "copy", dice.randrange(size), dice.randbytes(dice.choice([1, 100])))
    for _ in range(10):
        largest = max(folder.iterdir(), key=lambda file: file.stat().st_size)
        with largest.open("r+b") as file:
            file.seek(dice.randrange(size))
            file.write(dice.randbytes(dice.choice([1, 2, 8, 600])))
            file.truncate(max(PAGE, file.seek(0, 2) - dice.choice([0, 0, 0, 5000])))
    read(folder)


def test_uncommitted_entries_are_not_read(tmp_path: Path) -> None:
    """After a crash their seqs are given to other entries."""
    writer = write_spool(tmp_path / "spool")
    writer._db.execute("BEGIN IMMEDIATE")
    # 15 MB. SQLite caches 2, so pages go to the WAL before the commit. A much smaller cache would not do: once a page
    # is there twice, the frames after it have no salt until the commit.
    chunks = [pack(first_seq, [frame("x" * 5000)] * 100) for first_seq in range(201, 3201, 100)]
    writer._db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", chunks)
    shutil.copytree(tmp_path / "spool", tmp_path / "killed")
    writer._db.execute("ROLLBACK")
    writer.close()
    assert len(read(tmp_path / "killed")) == ENTRIES


@pytest.mark.parametrize("content", [b"", b"x", bytes(5 * PAGE), b"SQLite format 3\0" + bytes(5000)])
def test_file_that_is_no_spool_has_nothing_to_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spool.db").write_bytes(content)
    assert read(tmp_path) == []
    assert SalvagedSpool(tmp_path).spool_id is None


def test_folder_without_spool_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpoolFailed, match=r"spool.db: does not exist; name the folder"):
        SalvagedSpool(tmp_path)
