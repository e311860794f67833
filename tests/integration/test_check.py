"""`ingestor check` without a provider: its exit codes, and what other processes and permissions are in the way."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingestor.commands.check import run_offline_checks
from ingestor.commands.check_result import CheckResult
from ingestor.config import load
from ingestor.config.loader import find_location
from ingestor.core.files import FileLock, lock_holder
from ingestor.core.listeners import find_listener
from ingestor.store import migrate
from ingestor.store.engine import make_engine
from tests.support.daemon import InProcessDaemon, write_config
from tests.support.faulty_simulator import FaultySimulator
from tests.support.postgres_server import USER, free_port

from .conftest import Command

WriteConfig = Callable[..., Path]


@pytest.fixture
def check(write_config_for: WriteConfig) -> Callable[..., dict[str, CheckResult]]:
    """Run the offline checks, and return their results by name."""

    def run(*arguments: str, **sections: Any) -> dict[str, CheckResult]:
        sections.setdefault("http", {"listen": "127.0.0.1:0"})
        config = load(write_config_for(*arguments, **sections), {})
        return {result.name: result for result in run_offline_checks(config)}

    return run


Check = Callable[..., dict[str, CheckResult]]


# Exit codes, as the README documents them


def fine(_: Path) -> dict[str, Any]:
    return {}


def file_in_place_of_the_spool(folder: Path) -> dict[str, Any]:
    (folder / "spool").touch()
    return {}


def unreachable_database(_: Path) -> dict[str, Any]:
    return {"database": {"url": f"postgresql://u@127.0.0.1:{free_port()}/d"}}


def database_of_another_daemon(folder: Path) -> dict[str, Any]:
    (folder / "ingestor.db").touch()
    locks.append(FileLock(folder / "ingestor.db.lock", "").release)
    return {}


def secret_that_others_can_read(folder: Path) -> dict[str, Any]:
    (folder / "key").write_text("some-key")
    (folder / "key").chmod(0o644)
    return {"provider": {"api_key_file": "key"}}


def unknown_key(_: Path) -> dict[str, Any]:
    return {"htp": {}}


locks: list[Callable[[], None]] = []
CODES = {
    fine: (0, "✓ database"),
    unreachable_database: (69, "✗ database: postgresql+psycopg://u@127.0.0.1"),
    file_in_place_of_the_spool: (74, "✗ spool: "),
    database_of_another_daemon: (
        75,
        f"process {os.getpid()}, a daemon with another spool, writes to it; stop that one",
    ),
    secret_that_others_can_read: (77, "others can read or change this file; run: chmod 600"),
    unknown_key: (78, "htp"),
}


@pytest.fixture(autouse=True)
def _release_locks() -> Iterator[None]:
    yield
    while locks:
        locks.pop()()


@pytest.mark.parametrize(("prepare", "expected"), CODES.items(), ids=[prepare.__name__ for prepare in CODES])
def test_exit_code_is_the_documented_one(
    command: Command,
    write_config_for: WriteConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    prepare: Callable[[Path], dict[str, Any]],
    expected: tuple[int, str],
) -> None:
    sections = {"http": {"listen": "127.0.0.1:0"}} | prepare(tmp_path)
    if "api_key_file" not in sections.get("provider", {}):
        monkeypatch.setenv("INGESTOR_PROVIDER__API_KEY", "some-key")
    before = sorted(tmp_path.iterdir())
    config = write_config_for(**sections)
    result = command("check", "--config", config)
    assert result.code == expected[0], result.out + result.err
    assert expected[1] in result.out + result.err
    assert sorted({*tmp_path.iterdir()} - {config}) == before


# The address of the status page


def test_port_taken_by_another_process_is_named_with_it(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert find_listener(port) == (os.getpid(), Path("/proc/self/comm").read_text().strip())
        result = check(http={"listen": f"127.0.0.1:{port}"})["http"]
    assert result.warning and not result.exit_code  # the daemon runs without the page
    assert f"process {os.getpid()} (" in result.message
    assert f") listens on 127.0.0.1:{port}; end it, or choose another port in http.listen" in result.message
    assert find_listener(port) is None


async def test_port_of_the_running_daemon_is_fine(check: Check, simulator: FaultySimulator, tmp_path: Path) -> None:
    sections = {"http": {"listen": f"127.0.0.1:{free_port()}"}, "spool": {"path": str(tmp_path / "spool")}}
    wanted = {"/real-time/crowd-sentiment": ["AAPL"]}
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions=wanted, **sections)
    async with InProcessDaemon(config, simulator.api_key):
        results = check(**sections)
        assert lock_holder(tmp_path / "spool" / "lock") == str(os.getpid())
    assert results["http"].message.startswith(f"the running daemon (process {os.getpid()}) listens on 127.0.0.1:")
    assert not results["http"].warning
    assert not results["database"].exit_code  # it is this daemon that writes to it
    assert lock_holder(tmp_path / "spool" / "lock") is None


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_public_address_is_a_warning(check: Check, listen: str) -> None:
    result = check(http={"listen": listen})["http"]
    assert result.warning
    assert result.message.startswith(f"{listen} (http.listen) is reachable from other machines and has no authentic")


@pytest.mark.parametrize("listen", ["192.0.2.1:80", "no-such-host.invalid:80"])
def test_address_of_another_machine_is_a_warning(check: Check, listen: str) -> None:
    result = check(http={"listen": listen})["http"]
    assert result.warning
    assert f"cannot listen on {listen} (" in result.message


def test_holder_of_a_lock_is_found_without_taking_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert lock_holder(file) is None
    lock = FileLock(file, "")
    assert lock_holder(file) == str(os.getpid())
    lock.release()
    assert lock_holder(file) is None
    with file.open() as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


# The database


@pytest.mark.postgres
@pytest.mark.parametrize("migrate_setting", ["auto", "never"])
def test_user_that_can_write_but_not_upgrade_is_a_warning(
    check: Check, postgres_url: str, migrate_setting: str
) -> None:
    engine = make_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    migrate.upgrade(engine)
    engine.dispose()
    name = f"writer_{free_port()}"
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(f"REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE {name} LOGIN".encode())
        owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}".encode())
        try:
            result = check(database={"url": postgres_url.replace(USER, name, 1), "migrate": migrate_setting})[
                "database"
            ]
            owner.execute(f"GRANT CREATE ON SCHEMA public TO {name}".encode())
            granted = check(database={"url": postgres_url.replace(USER, name, 1)})["database"]
        finally:
            owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())
    assert not result.exit_code
    assert result.warning is (migrate_setting == "auto")
    assert ("GRANT CREATE ON SCHEMA public to it" in result.message) is result.warning
    assert not granted.warning


def test_only_what_concerns_the_configured_database_is_said(check: Check, tmp_path: Path) -> None:
    on_sqlite = check()
    on_postgres = check(f"postgresql://u@database.example.invalid:{free_port()}/d")
    assert {"SQLite", "database disk"} <= on_sqlite.keys()
    assert "database TLS" not in on_sqlite
    assert "database TLS" in on_postgres
    assert not {"SQLite", "database disk"} & on_postgres.keys()
    said = " ".join(result.message for result in on_sqlite.values())
    assert not any(word in said for word in ("PostgreSQL", "sslmode", "GRANT"))
    said = " ".join(result.message for result in on_postgres.values())
    assert not any(word in said for word in ("SQLite", "sqlite", "checkpoint"))


def test_locked_sqlite_file_is_fine_to_check(check: Check, tmp_path: Path) -> None:
    """Reading does not wait for a writer."""
    with sqlite3.connect(tmp_path / "ingestor.db", isolation_level=None) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("BEGIN IMMEDIATE")
        assert not check()["database"].exit_code
    other.close()


# Where a setting is


def test_location_of_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("subscriptions: [{path: crowd-sentiment}]\nprovider:\n  url: https://a.example\n")
    config = load(file, {})
    assert find_location(config, "provider", "url", env={}) == f"{file}:3:8"
    name = "INGESTOR_PROVIDER__URL"
    assert find_location(config, "provider", "url", env={name: "https://b.example"}) == name
