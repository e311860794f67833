"""Moving to another database and back from backups, with real processes: nothing is lost, nothing is stored twice."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command

from ingestor.store import migrate
from ingestor.store.engine import make_engine

from ..support.daemon import until, write_config
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedCommand, ForkedDaemon, ForkServer
from ..support.postgres_server import free_port, fresh_database

KEY = "the-key-of-the-move"
PATHS = {"/real-time/crowd-sentiment": ["AAPL", "ON"]}
KILLS = 4
PAGE = (Path(__file__).parents[2] / "docs" / "backup-and-move.md").read_text()


@pytest.fixture
def provider(fork_server: ForkServer, tmp_path: Path) -> Any:
    """A simulated provider with a value per second, and its URL."""
    port = free_port()
    serve = ("simulate", "--port", str(port), "--api-key", KEY, "--cadence", "1")
    process = ForkedCommand(fork_server, *serve, folder=tmp_path)
    process.start()
    yield f"http://127.0.0.1:{port}"
    process.kill()


@pytest.fixture
def start(fork_server: ForkServer, tmp_path: Path, provider: str) -> Any:
    """`start(url)`: a daemon with this database. All of them have the same spool."""
    started: list[ForkedDaemon] = []

    def start_daemon(database_url: str) -> ForkedDaemon:
        config = write_config(tmp_path, url=provider, database_url=database_url, subscriptions=PATHS)
        daemon = ForkedDaemon(fork_server, config, KEY)
        daemon.start()
        started.append(daemon)
        return daemon

    yield start_daemon
    for daemon in started:
        daemon.kill()


@pytest.fixture
def run(fork_server: ForkServer, tmp_path: Path) -> Callable[..., Any]:
    """`await run("audit")`: a command with the present config; returns its exit code, stdout and stderr."""

    async def run_command(*arguments: str, kill_after: float | None = None) -> tuple[int, str, str]:
        command = ForkedCommand(fork_server, *arguments, "--config", tmp_path / "config.yaml", folder=tmp_path)
        async with command:
            if kill_after is not None:
                await asyncio.sleep(kill_after)
                return -9, "", ""
            code = await command.wait_for_exit(60)
            return code, command.stdout, command.stderr

    return run_command


def command_of_page() -> str:
    """Return the one command with which the page copies, without the name of the program."""
    (command,) = set(re.findall(r"^ingestor (db copy --into \S+)", PAGE, re.MULTILINE))
    return str(command)


async def stored(daemon: ForkedDaemon, more_than: int = 0) -> int:
    """Wait until there are more new rows than that, and return their number."""
    return int(await until(lambda: (n := daemon.status.get("rows", {}).get("new", 0)) > more_than and n, 40))


async def store_more(daemon: ForkedDaemon) -> None:
    """Wait until there are some more rows than now."""
    await stored(daemon, 2 + await stored(daemon))


def values(url: str) -> set[tuple[Any, ...]]:
    rows = DbReader(url).rows("SELECT feed, metric, ticker, ts, value FROM observations")
    return {tuple(row.values()) for row in rows}


@pytest.mark.postgres
async def test_move_to_postgres_while_the_daemon_runs_and_the_copy_is_killed(
    start: Callable[[str], ForkedDaemon], run: Callable[..., Any], tmp_path: Path, postgres_url: str
) -> None:
    old_url = f"sqlite:///{tmp_path}/ingestor.db"
    daemon = start(old_url)
    await stored(daemon)
    copy = tuple(command_of_page().replace("postgresql://ingestor@db.example/ingestor", postgres_url).split())
    for _ in range(KILLS):
        await run(*copy, kill_after=random.uniform(0.05, 1.5))
    code, out, err = await run(*copy)
    assert (code, "both databases are equal" in out) == (0, True), err
    await store_more(daemon)
    assert await daemon.terminate() == 0
    code, out, err = await run(*copy)  # what came since
    assert code == 0, err
    before = values(old_url)
    assert values(postgres_url) == before
    daemon = start(postgres_url)
    await stored(daemon, 2)
    assert await daemon.terminate() == 0
    daemon.db.assert_consistent()
    assert before < values(postgres_url)
    assert DbReader(postgres_url).column("SELECT count(*) FROM instances") == [1]
    assert "lost" not in daemon.db.column("SELECT state FROM coverage")
    assert (await run("audit"))[0] == 0


@pytest.mark.postgres
@pytest.mark.slow
async def test_daemon_writes_into_the_copy_what_it_received_after_it(
    start: Callable[[str], ForkedDaemon], run: Callable[..., Any], tmp_path: Path, postgres_url: str
) -> None:
    old_url = f"sqlite:///{tmp_path}/ingestor.db"
    daemon = start(old_url)
    await stored(daemon)
    code, _, err = await run("db", "copy", "--into", postgres_url)
    assert code == 0, err
    await store_more(daemon)
    assert await daemon.terminate() == 0
    before = values(old_url)
    assert values(postgres_url) < before
    daemon = start(postgres_url)
    async with asyncio.timeout(40):
        while not before < values(postgres_url):
            await asyncio.sleep(0.2)
    assert await daemon.terminate() == 0
    daemon.db.assert_consistent()
    assert DbReader(postgres_url).column("SELECT count(*) FROM instances") == [1]
    assert DbReader(postgres_url).column("SELECT count(*) FROM events WHERE kind = 'rewound'") == [1]
    assert "lost" not in daemon.db.column("SELECT state FROM coverage")
    assert (await run("audit"))[0] == 0


@pytest.mark.postgres
async def test_daemon_refuses_an_unfinished_copy(
    start: Callable[[str], ForkedDaemon], run: Callable[..., Any], tmp_path: Path, postgres_url: str
) -> None:
    daemon = start(f"sqlite:///{tmp_path}/ingestor.db")
    await stored(daemon)
    assert await daemon.terminate() == 0
    await run("db", "copy", "--into", postgres_url)
    reader = DbReader(postgres_url)
    unfinished = "UPDATE alembic_version SET version_num = 'copy_0' RETURNING version_num"
    assert reader.scalar(unfinished) == "copy_0"  # as a killed copy leaves it
    before = reader.rows("SELECT * FROM instances")
    daemon = start(postgres_url)
    assert await daemon.wait_for_exit(40) == 78
    assert "the database is an unfinished copy: start the same `ingestor db copy` again" in daemon.stderr
    assert reader.rows("SELECT * FROM instances") == before


def vacuum_into(source: Path, target: Path) -> None:
    (statement,) = re.findall(r'sqlite3 ingestor.db "(VACUUM INTO .*)"', PAGE)
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as connection:
        connection.execute(statement.replace("backup.db", str(target)))


def backup_api(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as a, closing(sqlite3.connect(target)) as b:
        a.backup(b)


SLOW = pytest.mark.slow
RESTORED = [  # what is put back, and how many instances there are afterwards
    pytest.param(vacuum_into, {"database"}, 1, id="database"),
    pytest.param(backup_api, {"database"}, 1, id="database, by the backup API", marks=SLOW),
    pytest.param(vacuum_into, {"spool"}, 2, id="spool", marks=SLOW),
    pytest.param(vacuum_into, {"database", "spool"}, 1, id="both, the spool newer", marks=SLOW),
    pytest.param(vacuum_into, {"database", "no spool"}, 2, id="database without spool", marks=SLOW),
    pytest.param(vacuum_into, {"no database"}, 1, id="spool without database", marks=SLOW),
]


@pytest.mark.parametrize(("back_up", "restored", "instances"), RESTORED)
async def test_backup_of_running_daemon_can_be_restored(
    start: Callable[[str], ForkedDaemon],
    run: Callable[..., Any],
    tmp_path: Path,
    back_up: Callable[[Path, Path], None],
    restored: set[str],
    instances: int,
) -> None:
    database, spool = tmp_path / "ingestor.db", tmp_path / "spool"
    url = f"sqlite:///{database}"
    daemon = start(url)
    await stored(daemon, 4)
    back_up(database, tmp_path / "backup.db")
    await store_more(daemon)
    assert await daemon.terminate() == 0
    shutil.copytree(spool, tmp_path / "backup-spool")
    daemon = start(url)
    await stored(daemon, 2)
    daemon.kill()
    written = values(url)
    if restored & {"database", "no database"}:
        for file in tmp_path.glob("ingestor.db*"):
            file.unlink()
    if "database" in restored:
        shutil.copy(tmp_path / "backup.db", database)
    if restored & {"spool", "no spool"}:
        shutil.rmtree(spool)
    if "spool" in restored:
        shutil.copytree(tmp_path / "backup-spool", spool)
    restored_values = set() if "no database" in restored else values(url)
    daemon = start(url)
    await stored(daemon, 2)
    assert await daemon.terminate() == 0
    found = values(url)
    assert restored_values < found
    if not restored & {"spool", "no spool"}:  # the spool still has everything
        assert written <= found
        assert "lost" not in DbReader(url).column("SELECT state FROM coverage")
    assert len(found) == DbReader(url).scalar("SELECT count(*) FROM samples")  # nothing twice
    assert DbReader(url).scalar("SELECT count(*) FROM instances") == instances
    code, out, err = await run("audit")
    assert code == 0, out + err


@pytest.mark.slow
@pytest.mark.postgres
async def test_dump_of_running_daemon_can_be_restored(
    start: Callable[[str], ForkedDaemon],
    run: Callable[..., Any],
    tmp_path: Path,
    postgres_url: str,
    postgres_server_url: str,
    postgres_binaries: Path,
) -> None:
    daemon = start(postgres_url)
    await stored(daemon, 4)
    dump = tmp_path / "dump"
    subprocess.run([postgres_binaries / "pg_dump", "-Fc", "-f", dump, postgres_url], check=True)
    await store_more(daemon)
    daemon.kill()
    written = values(postgres_url)
    with fresh_database(postgres_server_url) as restored_url:
        restore = [postgres_binaries / "pg_restore", "--no-owner", "-d", restored_url, dump]
        subprocess.run(restore, check=True)
        assert values(restored_url) < written
        daemon = start(restored_url)
        await until(lambda: written <= values(restored_url), 40)
        assert await daemon.terminate() == 0
        assert "lost" not in DbReader(restored_url).column("SELECT state FROM coverage")
        assert DbReader(restored_url).column("SELECT count(*) FROM instances") == [1]
        code, out, err = await run("audit")
        assert code == 0, out + err


async def test_database_of_older_schema_is_upgraded_under_its_spool(
    start: Callable[[str], ForkedDaemon], run: Callable[..., Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/ingestor.db"
    engine = make_engine(url)
    with engine.connect() as connection, migrate._exclusive_transaction(connection):
        command.upgrade(migrate._config(connection), "v1_0001_tables")
    engine.dispose()
    daemon = start(url)
    await stored(daemon)
    assert await daemon.terminate() == 0
    daemon.db.assert_consistent()
    assert (await run("db", "current"))[1] == f"database {migrate.head_revision()}, program {migrate.head_revision()}\n"


async def test_daemon_leaves_a_newer_schema_as_it_is(
    start: Callable[[str], ForkedDaemon], run: Callable[..., Any], tmp_path: Path
) -> None:
    database = tmp_path / "ingestor.db"
    daemon = start(f"sqlite:///{database}")
    await stored(daemon)
    assert await daemon.terminate() == 0
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_later'")
    before, seq = database.read_bytes(), daemon.db.scalar("SELECT max(position) FROM instances")
    daemon = start(f"sqlite:///{database}")
    assert await daemon.wait_for_exit(40) == 78
    assert "schema 9999_later, made by a newer program" in daemon.stderr
    assert database.read_bytes() == before
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f"UPDATE alembic_version SET version_num = '{migrate.head_revision()}'")
    daemon = start(f"sqlite:///{database}")  # the newer program again: it continues where it stopped
    await stored(daemon, 2)
    assert await daemon.terminate() == 0
    daemon.db.assert_consistent()
    assert daemon.db.scalar("SELECT max(position) FROM instances") > seq
