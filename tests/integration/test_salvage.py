"""`ingestor spool salvage`: what is readable of a spool that was set aside is in the database, once, with its audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestor.commands import salvage as salvage_command
from ingestor.config import load
from ingestor.core.entries import Fact, Frame
from ingestor.daemon.factory import lock_database
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.spool.chunk_store import ChunkWriter, pack
from ingestor.store.engine import make_engine
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.integration.conftest import Command, CommandResult
from tests.support.daemon import InProcessDaemon, until, write_config
from tests.support.db_reader import DbReader
from tests.support.entries import CROWD, T0, decoder, fact, frame, row
from tests.support.writers import query

CHUNK, ENTRIES, WRITTEN, PAGE = 5, 200, 20, 4096
LATER_US = T0 + 3_600_000_000


def entry(seq: int) -> Frame | Fact:
    """A fact that would change coverage, an undecodable frame, or a frame with a value of its own minute."""
    if seq % 50 == 0:
        return fact(at_us=T0 + seq, state="live", tickers=["AAPL"])
    if seq % 50 == 1:
        return frame("no JSON", received_us=T0 + seq)
    return frame([row(minute=seq, value=0.25)], received_us=T0 + seq)


def minutes(seqs: list[int]) -> set[int]:
    return {seq for seq in seqs if seq % 50 not in (0, 1)}


class SetAside:
    """A database that has the first entries of a spool, and the spool, which was set aside."""

    def __init__(self, folder: Path, url: str, command: Command) -> None:
        self.spool_folder, self._command = folder / "spool", command
        self.folder = self.spool_folder / "unreadable-1"
        self.folder.mkdir(parents=True)
        self.db = DbReader(url)
        self.engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        document = {"database": {"url": url}, "subscriptions": [{"path": "crowd-sentiment"}]}
        self.config = folder / "config.yaml"
        self.config.write_text(json.dumps(document))
        self.config.chmod(0o600)
        self._fill()

    def _fill(self) -> None:
        file = ChunkWriter(self.folder / "spool.db")
        starts = range(1, ENTRIES + 1, CHUNK)
        file.write([pack(first, [entry(seq) for seq in range(first, first + CHUNK)]) for first in starts], acked=0)
        file.close()
        self.write(file.header.spool_id, [entry(seq) for seq in range(1, WRITTEN + 1)])

    def write(self, spool_id: str, entries: list[Frame | Fact]) -> None:
        """Write a batch as the daemon does."""
        writer, builder = BatchWriter(self.engine), BatchBuilder(1, decoder())
        writer.register(InstanceInfo(spool_id=spool_id, name="vm", version="", config_sha256="", started_us=T0))
        for number, item in enumerate(entries, 1):
            builder.add((number, item))
        writer.write(builder.batch)

    def damage(self, share: float) -> None:
        """Overwrite a page at this part of the file."""
        file = self.folder / "spool.db"
        pages = file.stat().st_size // PAGE
        with file.open("r+b") as opened:
            opened.seek(min(pages - 1, int(pages * share)) * PAGE)
            opened.write(b"\xa5" * PAGE)

    def command(self, *arguments: str | Path) -> CommandResult:
        return self._command(*arguments, "--config", self.config)

    def salvage(self, *arguments: str | Path) -> dict[str, Any]:
        """Run the command. The database must be consistent afterwards."""
        result = self.command("spool", "salvage", *arguments, "--output", "json")
        assert result.code == 0, result.err
        self.check()
        report: dict[str, Any] = json.loads(result.out)
        return report

    def check(self) -> None:
        self.db.assert_consistent()
        audited = self.command("audit")
        assert audited.code == 0, audited.out

    def minutes(self) -> set[int]:
        """The minutes for which the database has a value."""
        return {row_["ts"].hour * 60 + row_["ts"].minute for row_ in self.db.rows("SELECT ts FROM observations")}

    def state(self) -> list[Any]:
        """What a repetition must not change."""
        tables = ("samples", "sample_revisions", "payloads", "dead_letters", "events", "batches", "coverage")
        return [query(self.engine, f"SELECT count(*) FROM {table}") for table in tables]


@pytest.fixture
def set_aside(tmp_path: Path, migrated_url: str, command: Command) -> Iterator[SetAside]:
    made = SetAside(tmp_path, migrated_url, command)
    yield made
    made.engine.dispose()


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0], ids=["first page", "middle", "last page"])
def test_readable_entries_are_written_once(set_aside: SetAside, share: float) -> None:
    set_aside.damage(share)
    report = set_aside.salvage()
    readable = [seq for first, last in report["readable"] for seq in range(first, last + 1)]
    unreadable = [seq for first, last in report["unreadable"] for seq in range(first, last + 1)]
    assert sorted(readable + unreadable) == list(range(WRITTEN + 1, ENTRIES + 1))
    assert len(readable) >= 145
    assert (report["written"], report["written_before"]) == (len(readable), 0)
    assert report["origin"]["position"] == WRITTEN
    assert report["rows"] == {
        "new": len(minutes(readable)),
        "revised": 0,
        "duplicate": 0,
        "expired": 0,
        "dead": sum(seq % 50 == 1 for seq in readable),
    }
    assert set_aside.minutes() == minutes([*range(1, WRITTEN + 1), *readable])

    before = set_aside.state()
    again = set_aside.salvage()
    assert (again["written"], again["written_before"]) == (0, len(readable))
    assert set_aside.state() == before


def test_interrupted_salvage_continues_where_it_was(set_aside: SetAside, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def kill(done: int) -> None:
        if done > 60:
            raise KilledError

    monkeypatch.setattr(salvage_command, "POLICY", BatchPolicy(max_rows=13, max_wait_seconds=0))
    set_aside.damage(0.6)
    config = load(set_aside.config)
    with pytest.raises(KilledError), salvage_command.open_salvage(config, set_aside.folder) as opened:
        opened.run(kill)
    set_aside.check()
    report = set_aside.salvage()
    assert report["written_before"] > 60
    readable = [seq for first, last in report["readable"] for seq in range(first, last + 1)]
    assert report["written"] + report["written_before"] == len(readable)
    assert set_aside.minutes() == minutes([*range(1, WRITTEN + 1), *readable])
    assert len(set_aside.db.rows("SELECT 1 FROM events WHERE kind = 'salvaged'")) == 1


def test_salvaged_value_does_not_replace_a_later_one(set_aside: SetAside) -> None:
    set_aside.write("the next spool", [frame([row(minute=60, value=0.75)], received_us=LATER_US)])
    report = set_aside.salvage()
    assert (report["rows"]["revised"], report["rows"]["duplicate"]) == (1, 0)
    assert set(set_aside.db.current().values()) == {0.25, 0.75}
    assert list(set_aside.db.revisions().values()) == [[0.25]]


def test_salvaged_facts_claim_no_coverage(set_aside: SetAside) -> None:
    set_aside.salvage()
    assert set_aside.db.rows("SELECT * FROM coverage") == []
    assert len(set_aside.db.rows("SELECT * FROM events WHERE kind = 'connected'")) == 4


def test_further_damage_after_an_interruption_is_named(set_aside: SetAside) -> None:
    set_aside.salvage()
    set_aside.damage(0.6)
    result = set_aside.command("spool", "salvage")
    assert result.code == 74
    assert "an earlier salvage could read the entries 21 to 200; restore this folder" in result.err


def test_spool_whose_header_is_lost_is_known_by_its_runs(set_aside: SetAside) -> None:
    content = (set_aside.folder / "spool.db").read_bytes()
    spool_id = str(set_aside.db.scalar("SELECT spool_id FROM instances")).encode()
    run_id = salvage_command.SalvagedSpool(set_aside.folder).run_ids.pop()
    (set_aside.folder / "spool.db").write_bytes(content.replace(spool_id, b"?" * 32))
    with set_aside.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE instances SET run_id = '{run_id}'")
    report = set_aside.salvage()
    assert (report["origin"]["position"], report["end_known"]) == (WRITTEN, False)


def test_sqlite_database_of_a_running_daemon_is_left_alone(
    tmp_path: Path, sqlite_template: Path, command: Command
) -> None:
    file = tmp_path / "x.db"
    file.write_bytes(sqlite_template.read_bytes())
    set_aside = SetAside(tmp_path, f"sqlite:///{file}", command)
    before = set_aside.state()
    with lock_database(f"sqlite:///{file}"):
        result = set_aside.command("spool", "salvage")
    assert (result.code, "held by process" in result.err) == (75, True)
    assert set_aside.state() == before
    set_aside.engine.dispose()


def test_newest_spool_is_salvaged_and_others_are_mentioned(set_aside: SetAside) -> None:
    (set_aside.spool_folder / "unreadable-0").mkdir()
    result = set_aside.command("spool", "salvage")
    assert result.code == 0
    assert result.err == f"salvaging {set_aside.folder}, the newest of 2; for another, name its folder\n"
    lines = result.out.splitlines()
    assert lines[0] == f"{set_aside.folder}: the spool of instance 1 (vm), which had written its entries up to 20"
    assert lines[1:4] == [
        "readable after that: 180 entries (21 to 200)",
        "unreadable after that: no entries",
        "written before: 0; written now: 180",
    ]
    assert lines[-1].endswith(f"can be deleted: {set_aside.folder}")
    assert set_aside.folder.exists()


def test_spool_in_use_and_missing_folder_are_refused(set_aside: SetAside, tmp_path: Path) -> None:
    in_use = set_aside.command("spool", "salvage", set_aside.spool_folder)
    assert (in_use.code, "this is the spool in use" in in_use.err) == (2, True)
    missing = set_aside.command("spool", "salvage", tmp_path / "nothing")
    assert (missing.code, missing.err.count("\n")) == (74, 1)
    for content in (b"", b"no spool" * 1000):
        (tmp_path / "spool.db").write_bytes(content)
        other = set_aside.command("spool", "salvage", tmp_path)
        assert (other.code, "nothing in it is recognized as part of a spool" in other.err) == (74, True)
    set_aside.folder.rename(tmp_path / "elsewhere")
    assert "no spool was set aside in" in set_aside.command("spool", "salvage").err
    assert set_aside.salvage(tmp_path / "elsewhere")["written"] == 180


async def test_daemon_that_sets_a_spool_aside_names_the_command(
    tmp_path: Path, simulator: Any, command: Command
) -> None:
    """The whole way: a spool with a backlog is damaged, the daemon replaces it, and the command writes the rest."""
    (tmp_path / "spool").mkdir()
    file = ChunkWriter(tmp_path / "spool" / "spool.db")
    file.write([pack(1, [entry(seq) for seq in range(1, 101)])], acked=0)
    file.write([pack(101, [entry(seq) for seq in range(101, 201)])], acked=0)
    file.close()
    database = tmp_path / "spool" / "spool.db"
    content = bytearray(database.read_bytes())
    content[-100:] = bytes(100)
    database.write_bytes(content)
    config = write_config(
        tmp_path, url=simulator.url, database_url=f"sqlite:///{tmp_path}/x.db", subscriptions={CROWD: []}
    )
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        (reason,) = await until(lambda: daemon.db.column("SELECT reason FROM coverage WHERE state = 'lost'"))
    assert reason.endswith("see `ingestor spool salvage`")
    assert command("spool", "salvage", "--config", config).code == 0
    assert len(DbReader(f"sqlite:///{tmp_path}/x.db").rows("SELECT 1 FROM payloads WHERE event = 'res'")) >= 90
