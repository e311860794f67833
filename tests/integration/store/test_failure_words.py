"""How real failures of PostgreSQL and SQLite are described: each as itself, with a remedy, without the password."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from ingestor.errors import DatabaseUnavailable
from ingestor.store.engine import Engine, make_engine, transaction, translate_errors
from tests.support.faulty_disks import fill_disk, small_disk
from tests.support.postgres_server import USER, Postgres, free_port, own_server
from tests.support.requirements import skip_missing

SECRET = "hunter2-of-the-database"


@dataclass(frozen=True)
class Case:
    """What is done, and what is said of it."""

    says: str  # how the sentence begins
    remedy: str  # what it ends with, in part
    exit_code: int = 69


def said(engine: Engine, act: Callable[[Engine], object]) -> DatabaseUnavailable:
    try:
        with pytest.raises(DatabaseUnavailable) as raised, translate_errors():
            act(engine)
    finally:
        engine.dispose()
    assert "\n" not in str(raised.value)
    return raised.value


def assert_says(error: DatabaseUnavailable, case: Case) -> None:
    assert str(error).startswith(f"{case.says}: "), str(error)
    assert case.remedy in str(error).partition("; ")[2]
    assert error.exit_code == case.exit_code
    assert SECRET not in str(error)


# -- PostgreSQL


@pytest.fixture(scope="module")
def server(postgres_binaries: Path) -> Iterator[Postgres]:
    """A server that asks for passwords, and roles to fail with."""
    with own_server(postgres_binaries) as running:
        for statement in (
            "CREATE ROLE right_role LOGIN PASSWORD 'right'",
            "CREATE ROLE no_login NOLOGIN",
            "CREATE ROLE limited LOGIN CONNECTION LIMIT 0",
            "CREATE ROLE reader LOGIN",
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            "CREATE ROLE only_reads LOGIN",
            "ALTER ROLE only_reads SET default_transaction_read_only = on",
            "GRANT CREATE ON SCHEMA public TO only_reads",
            "CREATE DATABASE closed",
            "REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
            "CREATE TABLE shared (x integer)",
        ):
            running.execute(statement)
        rules = (
            "all right_role scram-sha-256",
            "all rejected reject",
            f"all {USER},no_login,limited,reader,only_reads,unknown trust",
        )
        lines = (f"host {' 127.0.0.1/32 '.join(rule.rsplit(' ', 1))}\n" for rule in rules)
        Path(running.data_folder, "pg_hba.conf").write_text("".join(lines))
        running.execute("SELECT pg_reload_conf()")
        yield running


REFUSED = {
    f"right_role:{SECRET}@{{server}}/postgres": Case(
        "the database server refused the password", "correct user and password", 77
    ),
    "right_role@{server}/postgres": Case("the database server refused the password", "correct user and password", 77),
    "rejected@{server}/postgres": Case("pg_hba.conf does not admit this user from this host", "reload the server", 77),
    "another@{server}/postgres": Case("pg_hba.conf does not admit this user from this host", "reload the server", 77),
    "no_login@{server}/postgres": Case("this database user may not log in", "ALTER ROLE … LOGIN", 77),
    "unknown@{server}/postgres": Case("there is no such database user", "CREATE ROLE … LOGIN", 77),
    f"{USER}@{{server}}/nowhere": Case("there is no such database", "CREATE DATABASE"),
    "reader@{server}/closed": Case("a permission is missing", "GRANT it to this user", 77),
    "limited@{server}/postgres": Case("the database server has too many connections", "raise max_connections"),
    f"{USER}@{{server}}/postgres?sslmode=require": Case("the connection cannot be encrypted as asked", "see sslmode"),
    f"{USER}@127.0.0.1:{{free}}/postgres": Case("the database server cannot be reached", "host and port"),
    f"{USER}@/postgres?host=/nowhere": Case("the database server cannot be reached", "host and port"),
    f"{USER}@no-such-host.invalid/postgres": Case("the host of the database server is unknown", "correct it"),
    "reader@{server}/postgres": Case("a permission is missing", "GRANT CREATE, USAGE ON SCHEMA", 77),
    "only_reads@{server}/postgres": Case("the session is read-only", "let this role write"),
    f"{USER}@{{server}}/postgres?options=-csearch_path%3Dnowhere": Case("there is no such schema", "fix search_path"),
}


def create_table(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(text("CREATE TABLE probe (x integer)"))


@pytest.mark.postgres
@pytest.mark.parametrize(("url", "case"), REFUSED.items(), ids=REFUSED)
def test_refusal_of_postgresql_is_said_as_itself(
    server: Postgres, caplog: pytest.LogCaptureFixture, url: str, case: Case
) -> None:
    caplog.set_level(logging.DEBUG)
    address = url.format(server=f"127.0.0.1:{server.port}", free=free_port())
    assert_says(said(make_engine(f"postgresql+psycopg://{address}"), create_table), case)
    assert "error of the database's driver: " in caplog.text  # its own words, for those who look for them
    assert SECRET not in caplog.text


@pytest.mark.postgres
def test_lock_of_another_session_is_said_as_itself(server: Postgres) -> None:
    case = Case("another session holds a lock on a table", "look in pg_locks")
    url = f"postgresql+psycopg://{USER}@127.0.0.1:{server.port}/postgres"
    with psycopg.connect(server.url()) as other:
        other.execute("LOCK TABLE shared")
        options = "?options=-clock_timeout%3D100ms"
        assert_says(said(make_engine(url + options), lambda engine: run(engine, "INSERT INTO shared VALUES (1)")), case)


def run(engine: Engine, statement: str) -> None:
    with transaction(engine) as connection:
        connection.execute(text(statement))


@pytest.mark.postgres
def test_server_that_stops_and_starts_is_said_as_itself(postgres: Postgres) -> None:
    stopping = Case("the database server stops or restarts", "unless this lasts")
    url = postgres.url().replace("postgresql:", "postgresql+psycopg:")
    ended = "SELECT pg_terminate_backend(pg_backend_pid())"
    assert_says(said(make_engine(url), lambda engine: run(engine, ended)), stopping)
    with psycopg.connect(postgres.url()):  # it waits for this session to end, and admits no other one
        postgres.request_stop()
        with pytest.raises(psycopg.OperationalError, match="shutting down"):
            while True:
                psycopg.connect(postgres.url()).close()
        assert_says(said(make_engine(url), create_table), stopping)


# -- SQLite


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in tmp_path, which other users cannot enter."""
    if os.geteuid() != 0:
        skip_missing("what other users may do: run as root")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def stranger() -> Iterator[None]:
    os.seteuid(61003)
    try:
        yield
    finally:
        os.seteuid(0)


def insert(engine: Engine) -> None:
    run(engine, "INSERT INTO numbers VALUES (zeroblob(3000000))")


def make_database(file: Path) -> Path:
    engine = make_engine(f"sqlite:///{file}")
    run(engine, "CREATE TABLE numbers (x)")
    engine.dispose()
    return file


Prepare = Callable[[Path, ExitStack], AbstractContextManager[None] | None]


def locked(file: Path, stack: ExitStack) -> None:
    other = sqlite3.connect(make_database(file), isolation_level=None)
    stack.callback(other.close)
    other.execute("BEGIN IMMEDIATE")


def others_file(file: Path, _: ExitStack) -> AbstractContextManager[None]:
    make_database(file)
    return stranger()


def private_file(file: Path, _: ExitStack) -> AbstractContextManager[None]:
    make_database(file).chmod(0o600)
    return stranger()


def closed_folder(file: Path, _: ExitStack) -> AbstractContextManager[None]:
    make_database(file).parent.chmod(0o700)
    return stranger()


def no_folder(file: Path, _: ExitStack) -> None:
    file.parent.rmdir()


def is_folder(file: Path, _: ExitStack) -> None:
    file.mkdir()


def text_file(file: Path, _: ExitStack) -> None:
    file.write_text("no database, but text\n" * 50)


def damaged(file: Path, _: ExitStack) -> None:
    raw = bytearray(make_database(file).read_bytes())
    raw[100:] = b"\xff" * (len(raw) - 100)
    file.write_bytes(raw)


def full_disk(file: Path, stack: ExitStack) -> None:
    stack.enter_context(small_disk(file.parent, 4 << 20))
    make_database(file)
    stack.enter_context(fill_disk(file.parent))


def full_before_it_exists(file: Path, stack: ExitStack) -> None:
    stack.enter_context(small_disk(file.parent, 4 << 20, files=2))
    (file.parent / "other").touch()


def read_only_disk(file: Path, stack: ExitStack) -> None:
    stack.enter_context(small_disk(file.parent, 4 << 20))
    make_database(file)
    subprocess.run(["mount", "-o", "remount,ro", file.parent], check=True)


SQLITE: dict[Prepare, Case] = {
    locked: Case("another program holds a lock on the database file", "fuser"),
    others_file: Case("this user may not write to the database file", "run this as the daemon's user", 77),
    private_file: Case("a permission is missing", "let this user read and write the file", 77),
    closed_folder: Case("a permission is missing", "let this user read and write the file", 77),
    no_folder: Case("the folder of the database does not exist", "create it, or fix database.url"),
    is_folder: Case("the path of the database is a folder", "add the name of the file"),
    text_file: Case("the file is not a SQLite database", "name another file in database.url"),
    damaged: Case("the database file is damaged", "restore the file from a backup"),
    full_disk: Case("the disk of the database is full", "free some space"),
    full_before_it_exists: Case("the disk of the database is full", "free some space"),
    read_only_disk: Case("the file system of the database is read-only", "mount it writable"),
}


@pytest.mark.parametrize(("prepare", "case"), SQLITE.items(), ids=[prepare.__name__ for prepare in SQLITE])
def test_failure_of_sqlite_is_said_as_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, prepare: Prepare, case: Case
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options | {"timeout": 0.05}))
    file = folder / "data" / "ingestor.db"
    file.parent.mkdir()
    with ExitStack() as stack:
        acting = prepare(file, stack) or nullcontext()
        with acting:
            error = said(make_engine(f"sqlite:///{file}"), insert)
    assert_says(error, case)
