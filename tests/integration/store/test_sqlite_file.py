"""A SQLite file that is deleted or replaced while it is open: both engines go on with the file that has its name."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ingestor.errors import DatabaseUnavailable
from ingestor.store.engine import fetch_all, make_engine, transaction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ingestor.db"


@pytest.fixture
def engines(path: Path) -> Iterator[tuple[Engine, Engine]]:
    """One that writes and one that reads, both with an open connection. The database contains 1; its WAL adds 2."""
    path.parent.mkdir()
    writer, reader = make_engine(f"sqlite:///{path}"), make_engine(f"sqlite:///{path}", read_only=True)
    with transaction(writer) as connection:
        connection.execute(text("CREATE TABLE numbers (number)"))
    insert(writer, 1)
    with transaction(writer) as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.execute("COMMIT")
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.execute("BEGIN")
    assert numbers(reader) == [1]
    insert(writer, 2)
    yield writer, reader
    writer.dispose()
    reader.dispose()


def insert(engine: Engine, number: int) -> None:
    with transaction(engine) as connection:
        connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})


def numbers(engine: Engine) -> list[int]:
    return [row[0] for row in fetch_all(engine, text("SELECT number FROM numbers ORDER BY number"))]


def read(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in connection.execute("SELECT number FROM numbers ORDER BY number")]


def other_database(folder: Path) -> Path:
    path = folder / "other.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE numbers (number)")
        connection.execute("INSERT INTO numbers VALUES (10)")
    return path


def replaced(path: Path) -> None:
    other_database(path.parent).rename(path)


def moved_away_and_replaced(path: Path) -> None:
    path.rename(path.with_name("moved.db"))
    shutil.copy(other_database(path.parent), path)


def link_changed(path: Path) -> None:
    """The name becomes a link to another file."""
    other = other_database(path.parent)
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("change", [replaced, moved_away_and_replaced, link_changed])
def test_replaced_file_is_used_without_the_wal_of_the_old_one(
    path: Path, engines: tuple[Engine, Engine], change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    change(path)
    insert(engines[0], 11)
    assert [numbers(engine) for engine in engines] == [[10, 11], [10, 11]]
    assert caplog.messages == [
        f"{path} was deleted or replaced while it was open; opening the files that are there now"
    ]
    for engine in engines:
        engine.dispose()
    assert read(path) == [10, 11]


def test_file_that_was_moved_away_has_the_commits_of_its_wal(path: Path, engines: tuple[Engine, Engine]) -> None:
    moved_away_and_replaced(path)
    insert(engines[0], 11)
    assert read(path.with_name("moved.db")) == [1, 2]


def test_deleted_file_is_not_written_to(path: Path, engines: tuple[Engine, Engine]) -> None:
    path.unlink()
    with pytest.raises(DatabaseUnavailable, match="no such table"):
        insert(engines[0], 3)
    with pytest.raises(DatabaseUnavailable, match="no such table"):
        numbers(engines[1])


def test_moved_folder_is_unavailable_until_it_is_back(path: Path, engines: tuple[Engine, Engine]) -> None:
    elsewhere = path.parent.with_name("elsewhere")
    path.parent.rename(elsewhere)
    for attempt in (lambda: insert(engines[0], 3), lambda: numbers(engines[1])):
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            attempt()
    elsewhere.rename(path.parent)
    insert(engines[0], 3)
    assert [numbers(engine) for engine in engines] == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("suffixes", [("-wal",), ("-shm",), ("-wal", "-shm")], ids="".join)
def test_commits_of_a_deleted_wal_are_kept(
    path: Path, engines: tuple[Engine, Engine], suffixes: tuple[str, ...]
) -> None:
    for suffix in suffixes:
        path.with_name(path.name + suffix).unlink()
    insert(engines[0], 3)
    assert [numbers(engine) for engine in engines] == [[1, 2, 3], [1, 2, 3]]
    assert read(path) == [1, 2, 3]
