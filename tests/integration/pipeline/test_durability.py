"""In which order things become durable: synced before received, committed before forgotten. Counted where it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from ingestor.errors import SpoolFailed
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.spool.chunk_store import ChunkWriter
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo
from tests.support.entries import T0, decoder, fact, frame, row
from tests.support.flaky_commit import HastyWriter, Unsteady
from tests.support.strace import counting

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
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo
from ingestor.store.engine import make_engine

engine = make_engine("sqlite:///spool.db")
database = BatchWriter(engine)
database.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=0), 1)
input()
for at_us in range({TIMES}):
    database.publish_heartbeat(at_us)
"""


@pytest.mark.parametrize("script", [SPOOL, DATABASE], ids=["spool", "SQLite database"])
def test_each_commit_is_synced_to_the_disk(tmp_path: Path, sqlite_template: Path, script: str) -> None:
    if script is DATABASE:
        (tmp_path / "spool.db").write_bytes(sqlite_template.read_bytes())
    with (
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, cwd=tmp_path, env={"PYTHONPATH": str(TOP)}, text=True
        ) as process,
        counting(process.pid, tmp_path / "calls") as calls,
    ):
        process.communicate("go\n")
    assert process.returncode == 0
    log = str(tmp_path / "spool.db-wal")
    assert calls["fdatasync", log] + calls["fsync", log] >= TIMES


def test_the_spool_and_a_sqlite_database_are_as_careful_as_sqlite_can_be(tmp_path: Path) -> None:
    file = ChunkWriter(tmp_path / "spool.db")
    engine = make_engine(f"sqlite:///{tmp_path / 'ingestor.db'}")
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == FULL
    assert file._db.execute("PRAGMA synchronous").fetchone() == (FULL,)
    file.close()
    engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize(("usual", "ours"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
def test_postgresql_commits_to_the_disk_also_where_it_usually_does_not(
    postgres_url: str, usual: str, ours: str
) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET synchronous_commit = '{usual}'")
    engine = make_engine(url)
    found = []
    with engine.connect() as connection:
        for _ in range(2):
            found.append(connection.execute(text("SHOW synchronous_commit")).scalar_one())
            connection.rollback()
    engine.dispose()
    assert found == [ours] * 2


def _unexpected(failure: SpoolFailed) -> None:
    raise failure


async def test_nothing_is_received_before_it_is_in_the_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=0)
    spool.start(_unexpected)
    write, written = spool._file.write, []

    def watched(*arguments: object, **more: object) -> None:
        written.append(spool.synced)  # before the commit
        write(*arguments, **more)  # type: ignore[arg-type]

    spool._file.write = watched  # type: ignore[method-assign]
    for _ in range(3):
        await spool.durable(spool.append(fact()))
    assert written == [0, 1, 2]
    await spool.close()


async def test_what_is_not_committed_is_not_forgotten(tmp_path: Path, migrated_url: str) -> None:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0)
    spool.start(_unexpected)
    instance = InstanceInfo(spool_id=spool.spool_id, name="", version="", config_sha256="", started_us=T0)
    policy = BatchPolicy(max_rows=5_000, max_wait_seconds=0)
    commits, outages = Unsteady(engine), list[str]()

    def give_up(error: str, _delay_seconds: float) -> None:
        outages.append(error)
        writer.stop()
        commits.fail(1, done=False)  # the last try as well

    writer = HastyWriter(
        spool, BatchWriter(engine), decoder(), policy, instance, prepare=lambda: None, on_outage=give_up
    )
    writer._begin()
    commits.fail(2, done=False)  # the first is that of the names
    await spool.durable(spool.append(frame([row()])))
    writer.step()
    await spool.durable(spool.append(fact()))  # what was acknowledged would go with this sync
    assert len(outages) == 1
    assert (spool.acked, [seq for seq, _ in spool.read(0, max_entries=9)]) == (0, [1, 2])
    await spool.close()
    engine.dispose()
