"""Locks hold whatever name leads to the file, and files of our own are opened without following links."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestor.daemon.factory import lock_database
from ingestor.errors import AlreadyLocked, PermissionDenied, SpoolFailed
from ingestor.spool import ballast
from ingestor.spool.mark import MARK
from ingestor.spool.spool import LOCK, Spool
from tests.support.entries import fact


@pytest.fixture(autouse=True)
def small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 4096)


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "ingestor.db"
    path.parent.mkdir()
    path.touch()
    return path


def link_to_file(database: Path) -> Path:
    (link := database.parents[1] / "link.db").symlink_to(database)
    return link


def link_to_folder(database: Path) -> Path:
    (link := database.parents[1] / "link").symlink_to(database.parent)
    return link / database.name


def chain_of_links(database: Path) -> Path:
    (link := database.parents[1] / "chain.db").symlink_to(link_to_file(database).name)
    return link


OTHER_NAMES: dict[str, Callable[[Path], Path]] = {
    "symbolic link": link_to_file,
    "link to the folder": link_to_folder,
    "chain of links": chain_of_links,
    "dots": lambda path: path.parent / ".." / path.parent.name / path.name,
    "relative": lambda path: Path(os.path.relpath(path)),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("exists", [True, False])
def test_database_has_one_lock_whatever_its_path(database: Path, name: str, exists: bool) -> None:
    if not exists:
        database.unlink()
    other = OTHER_NAMES[name](database)
    with (
        lock_database(url_of(database)),
        pytest.raises(AlreadyLocked, match=rf"ingestor\.db\.lock: held by process {os.getpid()}"),
    ):
        lock_database(url_of(other))
    with lock_database(url_of(other)), pytest.raises(AlreadyLocked):
        lock_database(url_of(database))
    lock_database(url_of(database)).close()


def test_database_with_hard_links_is_refused(database: Path) -> None:
    os.link(database, database.with_name("second.db"))
    for path in (database, database.with_name("second.db")):
        with pytest.raises(PermissionDenied, match=rf"{path.name}: has a second name .* -inum {path.stat().st_ino}"):
            lock_database(url_of(path))


def test_database_in_a_loop_of_links_is_refused(database: Path) -> None:
    database.unlink()
    database.symlink_to(database.name)
    with pytest.raises(PermissionDenied, match=r"ingestor\.db: is a symbolic link"):
        lock_database(url_of(database))


def open_spool(folder: Path) -> Spool:
    return Spool(folder, max_bytes=1 << 30, sync_every_seconds=0)


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe"])
@pytest.mark.parametrize("name", [LOCK, "ballast", MARK, "spool.db"])
async def test_spool_refuses_a_link_in_place_of_its_file(tmp_path: Path, name: str, kind: str) -> None:
    victim, place = tmp_path / "victim", tmp_path / "spool" / name
    victim.write_text("precious")
    place.parent.mkdir()
    make: dict[str, Callable[[Path], None]] = {"symbolic link": place.symlink_to, "hard link": place.hardlink_to}
    make.get(kind, lambda _: os.mkfifo(place))(victim)
    said = {"symbolic link": "is a symbolic link", "hard link": "has a second name", "pipe": "is not a regular file"}[
        kind
    ]
    with pytest.raises(PermissionDenied, match=f"spool/{name}: {said}"):
        open_spool(place.parent)
    assert victim.read_text() == "precious"


def test_database_lock_does_not_follow_a_link(database: Path) -> None:
    (victim := database.with_name("victim")).write_text("precious")
    database.with_name("ingestor.db.lock").symlink_to(victim)
    with pytest.raises(PermissionDenied, match=r"ingestor\.db\.lock: is a symbolic link"):
        lock_database(url_of(database))
    assert victim.read_text() == "precious"


async def test_two_paths_to_a_spool_have_one_lock(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool")
    spool.start(lambda _: None)
    (tmp_path / "link").symlink_to("spool")
    with pytest.raises(AlreadyLocked):
        open_spool(tmp_path / "link")
    await spool.close()


@pytest.mark.parametrize("change", ["deleted", "replaced"])
@pytest.mark.parametrize("name", ["spool.db", "spool.db-wal", LOCK])
async def test_spool_whose_file_is_replaced_while_in_use_fails(tmp_path: Path, name: str, change: str) -> None:
    failures: list[SpoolFailed] = []
    spool = open_spool(tmp_path)
    spool.start(failures.append)
    await spool.durable(spool.append(fact()))
    if change == "replaced":
        (tmp_path / "new").write_bytes((tmp_path / name).read_bytes())
        (tmp_path / "new").replace(tmp_path / name)
    else:
        (tmp_path / name).unlink()
    spool.heartbeat(1_000)
    with pytest.raises(SpoolFailed, match=f"{name}: was deleted or replaced while in use"):
        await spool.durable(spool.append(fact()) + 1)
    assert len(failures) == 1
    await spool.close()
