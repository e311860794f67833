"""The order in which things become durable: synced before received, committed before acknowledged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text

from ingestor.spool.chunk_store import ChunkWriter
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from tests.support.entries import fact, frame, row
from tests.support.flaky_commit import FlakyCommits
from tests.support.strace import count_calls
from tests.support.writers import make_writer, put, raise_failure

TIMES = 25
FULL = 2  # PRAGMA synchronous
TOP = Path(__file__).parents[3]

SPOOL = f"""
import asyncio
from pathlib import Path
from ingestor.spool.spool import Spool
from tests.support.entries import fact

async def main() -> None:
    spool = Spool(Path("."), max_bytes=1 << 30, sync_every_seconds=0)
    spool.start(print)
    input()
    for _ in range({TIMES}):
        await spool.durable(spool.append(fact()))

asyncio.run(main())
"""
DATABASE = f"""
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from ingestor.store.engine import make_engine

engine = make_engine("sqlite:///spool.db")
database = BatchWriter(engine)
database.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=0))
input()
for at_us in range({TIMES}):
    database.publish_heartbeat(at_us)
"""


@pytest.mark.parametrize("script", [SPOOL, DATABASE], ids=["spool", "SQLite database"])
def test_every_commit_is_synced_to_disk(tmp_path: Path, sqlite_template: Path, script: str) -> None:
    if script is DATABASE:
        (tmp_path / "spool.db").write_bytes(sqlite_template.read_bytes())
    with (
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, cwd=tmp_path, env={"PYTHONPATH": str(TOP)}, text=True
        ) as process,
        count_calls(process.pid, tmp_path / "calls") as calls,
    ):
        process.communicate("go\n")
    assert process.returncode == 0
    log = str(tmp_path / "spool.db-wal")
    assert calls["fdatasync", log] + calls["fsync", log] >= TIMES


def test_spool_and_sqlite_database_use_synchronous_full(tmp_path: Path) -> None:
    file = ChunkWriter(tmp_path / "spool.db")
    engine = make_engine(f"sqlite:///{tmp_path / 'ingestor.db'}")
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == FULL
    assert file._db.execute("PRAGMA synchronous").fetchone() == (FULL,)
    file.close()
    engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize(("default", "expected"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
def test_postgresql_commits_durably_whatever_its_default(postgres_url: str, default: str, expected: str) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET synchronous_commit = '{default}'")
    engine = make_engine(url)
    found = []
    with engine.connect() as connection:
        for _ in range(2):
            found.append(connection.execute(text("SHOW synchronous_commit")).scalar_one())
            connection.rollback()
    engine.dispose()
    assert found == [expected] * 2


async def test_entry_is_durable_only_after_the_spool_commits(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=0)
    spool.start(raise_failure)
    write, synced_before = spool._file.write, []

    def record(*arguments: object, **options: object) -> None:
        synced_before.append(spool.synced)  # before the commit
        write(*arguments, **options)  # type: ignore[arg-type]

    spool._file.write = record  # type: ignore[method-assign]
    for _ in range(3):
        await spool.durable(spool.append(fact()))
    assert synced_before == [0, 1, 2]
    await spool.close()


async def test_spool_keeps_entries_whose_commit_failed(spool: Spool, engine: Engine) -> None:
    commits, outages = FlakyCommits(engine), list[str]()

    def give_up(error: str, _delay_seconds: float) -> None:
        outages.append(error)
        writer.stop()
        commits.fail(1, done=False)  # the last attempt as well

    writer = make_writer(spool, engine, drain=False, on_outage=give_up, sleep=lambda _seconds: None)
    writer.register()
    commits.fail(2, done=False)  # the first commit is that of the series
    await put(spool, frame([row()]))
    writer.step()
    await put(spool, fact())  # this sync would delete what was acknowledged
    assert len(outages) == 1
    assert (spool.acked, [seq for seq, _ in spool.read(0, max_entries=9)]) == (0, [1, 2])
