"""Commands in the process of the test, on real databases: error messages and hostile text."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import time_machine
from sqlalchemy import text

from ingestor.commands import check
from ingestor.config import load
from ingestor.daemon.control_socket import control_server
from ingestor.errors import DatabaseUnavailable
from ingestor.repair.backfill_requests import from_json
from ingestor.store import migrate
from ingestor.store.engine import make_engine
from ingestor.store.maintenance.repairs import RepairTable
from ingestor.store.open_database import open_database
from tests.integration.conftest import Command
from tests.integration.store.row_factory import Database, at
from tests.unit.monitoring.healthy_status import NOON, SENTIMENT, status

HOSTILE = "\x1b[2J\x1b[31mhacked\nfake line\u202e"
HARMLESS = "\\u001b[2J\\u001b[31mhacked\\nfake line\\u202e"
ASKING = (
    ["status"],
    ["audit"],
    ["dead-letters", "list"],
    ["tail"],
    ["coverage"],
    ["export", "--feed", "crowd-sentiment"],
)
READING = (*ASKING, ["db", "current"])
HIDDEN = "hunter2secret"


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_missing_database_is_reported_with_remedy(
    command: Command, write_config_for: Callable[..., Path], tmp_path: Path, arguments: list[str]
) -> None:
    result = command(*arguments, "--config", write_config_for())
    assert (result.code, result.out) == (69, "")
    where = f"sqlite:///{tmp_path / 'ingestor.db'}: does not exist; "
    assert result.err == f"{where}`ingestor run` creates it, or fix database.url\n"
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("arguments", [*ASKING, ["replay", "--into", "sqlite:///new.db"]], ids=" ".join)
def test_database_of_a_pre_release_is_not_read(
    command: Command,
    write_config_for: Callable[..., Path],
    migrated_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0005_payload_blocks'"))
    engine.dispose()
    config = write_config_for(migrated_url)
    result = command(*arguments, "--config", config)
    assert (result.code, result.out) == (78, "")
    assert "schema 0005_payload_blocks of a pre-release" in result.err
    shown = command("db", "current", "--config", config)
    assert (shown.code, "0005_payload_blocks" in shown.out) == (0, True)


@pytest.mark.parametrize("arguments", [*READING, ["db", "upgrade"]], ids=" ".join)
def test_file_that_is_no_database_is_left_unchanged(
    command: Command, write_config_for: Callable[..., Path], tmp_path: Path, arguments: list[str]
) -> None:
    file = tmp_path / "ingestor.db"
    file.write_text("no database, but text\n" * 50)
    result = command(*arguments, "--config", write_config_for())
    assert (result.code, result.out) == (69, "")
    assert result.err == f"sqlite:///{file}: the file is not a SQLite database: file is not a database; {MOVE}\n"
    assert file.read_text() == "no database, but text\n" * 50


MOVE = "name another file in database.url, or move this one out of the way"


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_database_without_tables_is_reported_with_remedy(
    command: Command, write_config_for: Callable[..., Path], database_url: str, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "ingestor.db").touch()  # an empty file is an empty database
    result = command(*arguments, "--config", write_config_for(database_url))
    assert (result.code, result.out) == (69, "")
    assert result.err.endswith("; `ingestor run` or `ingestor db upgrade` creates the tables\n")


@pytest.mark.parametrize("arguments", [*READING, ["check"]], ids=" ".join)
def test_unreachable_server_is_reported_without_password(
    command: Command, write_config_for: Callable[..., Path], arguments: list[str]
) -> None:
    result = command(*arguments, "--config", write_config_for(f"postgresql://u@127.0.0.1:1/d?password={HIDDEN}"))
    assert result.code in (69, 78)  # check also misses the API key
    assert "postgresql+psycopg://u@127.0.0.1:1/d?password=***: " in result.out + result.err
    assert HIDDEN not in result.out + result.err


@pytest.mark.postgres
def test_check_names_database_without_password(
    command: Command, write_config_for: Callable[..., Path], postgres_url: str
) -> None:
    config = write_config_for(f"{postgres_url}?password={HIDDEN}")
    result = command("check", "--config", config)
    assert "?password=***: schema empty, `ingestor run` upgrades to" in result.out
    assert HIDDEN not in result.out + result.err
    assert HIDDEN not in "".join(
        result.message for result in check.run_offline_checks(load(config, {}))
    )  # nor in the unmasked result


def test_check_warns_of_missing_tls_and_masks_proxy(
    command: Command, write_config_for: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://somebody:{HIDDEN}@proxy.example:3128")
    config = write_config_for("postgresql://u@0.0.0.0:1/d")  # not a loopback address, but it reaches this machine
    result = command("check", "--config", config)
    assert "! database TLS: the connection to 0.0.0.0 may be unencrypted (sslmode prefer)" in result.out
    assert "is reached through http://proxy.example:3128, set by the environment" in result.out
    assert HIDDEN not in result.out + result.err
    found = {result.name: result for result in check.run_offline_checks(load(config))}
    assert found["database TLS"].warning
    assert found["database TLS"].exit_code == 0
    config = write_config_for("postgresql://u@127.0.0.1:1/d")
    assert "database TLS" not in {result.name for result in check.run_offline_checks(load(config))}


def test_database_error_does_not_contain_password() -> None:
    with (
        pytest.raises(DatabaseUnavailable) as raised,
        open_database(f"postgresql+psycopg://u:{HIDDEN}@127.0.0.1:1/d?password={HIDDEN}") as engine,
    ):
        engine.connect()
    assert "postgresql+psycopg://u:***@127.0.0.1:1/d?password=***: " in str(raised.value)
    assert HIDDEN not in str(raised.value)


def test_status_from_database_as_json(
    command: Command, write_config_for: Callable[..., Path], migrated_url: str
) -> None:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    Database(engine).instance(1, "10:00", name="one", position=1)
    engine.dispose()
    result = command("status", "--config", write_config_for(migrated_url), "--output", "json")
    (instance,) = json.loads(result.out)["instances"]
    assert datetime.fromisoformat(instance["heartbeat_at"]).hour == 10


# Missing permissions.


@contextmanager
def other_user() -> Iterator[None]:
    """Run the block without root privileges."""
    own_uid = os.geteuid()
    if own_uid == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own_uid)


def test_check_reports_inaccessible_folders(write_config_for: Callable[..., Path], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "spool").mkdir(parents=True)
    config = load(write_config_for(f"sqlite:///{closed}/ingestor.db", spool={"path": f"{closed}/spool"}), {})
    closed.chmod(0)
    try:
        with other_user():
            results = {result.name: result for result in check.run_offline_checks(config)}
    finally:
        closed.chmod(0o700)
    for name in ("spool", "database"):
        assert results[name].exit_code == 77
        assert "is not writable by this user; chown it" in results[name].message


def test_unreadable_database_is_not_reported_missing(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "ingestor.db").touch()
    closed.chmod(0)
    said = f"{closed}/ingestor.db: a permission is missing: unable to open database file; let this user read"
    try:
        with (
            other_user(),
            pytest.raises(DatabaseUnavailable, match=re.escape(said)),
            open_database(f"sqlite:///{closed}/ingestor.db") as engine,
        ):
            engine.connect()
    finally:
        closed.chmod(0o700)


def test_other_user_reads_live_database_or_with_immutable() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path, which other users cannot enter
        file = Path(folder, "ingestor.db")
        url = f"sqlite:///{file}"
        head = migrate.head_revision()  # here, because other users may not read the checkout
        writer = make_engine(url)
        migrate.upgrade(writer)
        Path(folder).chmod(0o555)
        for part in Path(folder).iterdir():
            part.chmod(0o444)
        with other_user(), open_database(url) as engine:
            assert migrate.current_revision(engine) == head
        Path(folder).chmod(0o755)
        writer.dispose()
        Path(folder).chmod(0o555)
        refused = pytest.raises(DatabaseUnavailable, match="readonly database; let it write the file")
        with other_user(), refused, open_database(url) as engine:
            migrate.current_revision(engine)
        with other_user(), closing(sqlite3.connect(f"file:{file}?immutable=1", uri=True)) as reader:
            assert reader.execute("SELECT count(*) FROM observations").fetchall() == [(0,)]
        Path(folder).chmod(0o755)


@pytest.mark.parametrize("path", ["afile", "afile/spool"])
def test_check_reports_file_in_place_of_spool_folder(
    command: Command, write_config_for: Callable[..., Path], tmp_path: Path, path: str
) -> None:
    (tmp_path / "afile").touch()
    result = command("check", "--config", write_config_for(spool={"path": path}))
    assert f"✗ spool: {tmp_path / 'afile'} is a file instead of a folder" in result.out
    assert check._check_folder("spool", tmp_path / path).exit_code == 74


@pytest.mark.parametrize("lost", ["DELETE FROM repairs", "UPDATE repairs SET from_ts = created_at, state = 'done'"])
async def test_backfill_that_the_database_lost_is_not_taken_for_finished(
    command: Command, write_config_for: Callable[..., Path], tmp_path: Path, database_url: str, lost: str
) -> None:
    engine = make_engine(database_url)
    migrate.upgrade(engine)

    async def lose(request: dict[str, Any]) -> dict[str, Any]:
        repair_ids = RepairTable(engine).request(from_json(request["requests"]), NOON)
        with engine.begin() as connection:  # as after a failover; the id may be another repair's then
            connection.execute(text(lost))
        return {"repairs": repair_ids}

    (tmp_path / "spool").mkdir(mode=0o700)
    arguments = ("backfill", "--ticker", "AAPL", "--from", "2026-01-01", "--to", "2026-01-02")
    async with control_server(tmp_path / "spool", {"backfill": lose}):
        result = await asyncio.to_thread(command, *arguments, "--config", write_config_for(database_url))
    engine.dispose()
    assert result.code == 69
    assert result.err.endswith(
        "went back to a time before it had all of these requests; the daemon requests them again\n"
    )
    assert "done" not in result.out


# Hostile text.


async def test_status_escapes_hostile_text_of_provider(
    command: Command, write_config_for: Callable[..., Path], tmp_path: Path
) -> None:
    live = status(connections=(replace(SENTIMENT, connected=False, last_error=HOSTILE),))

    async def send_status(_request: dict[str, Any]) -> dict[str, Any]:
        return {"status": live.to_json().decode()}

    config = write_config_for()
    (tmp_path / "spool").mkdir()
    async with control_server(tmp_path / "spool", {"status": send_status}):
        text = await asyncio.to_thread(command, "status", "--config", config)
        as_json = await asyncio.to_thread(command, "status", "--config", config, "--output", "json")
    assert (text.code, as_json.code) == (1, 1)
    assert f"not connected: {HARMLESS}, 7 frames" in text.out
    assert json.loads(as_json.out)["connections"][0]["last_error"] == HOSTILE
    assert all(line.isprintable() for line in (text.out + as_json.out).split("\n"))


def test_commands_escape_hostile_text_in_tables(
    command: Command, write_config_for: Callable[..., Path], migrated_url: str
) -> None:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    database = Database(engine)
    database.instance(1, "10:05", name=HOSTILE[:60], position=1)
    database.subscription(1)
    database.state(1, 1, "lost", "10:00", "10:01", HOSTILE)
    names = {"dead_letter_id": 1, "instance_id": 1, "seq": 1, "received_at": NOON, "stage": "decode"}
    database.add("dead_letters", reason=HOSTILE, detail=HOSTILE, body=HOSTILE, **names)
    database.sample("crowd-sentiment", "crowd_sentiment", HOSTILE, "10:00", 0.5, seq=1)
    engine.dispose()
    config = write_config_for(migrated_url)
    coverage = ["coverage", "--since", "2024-03-10"]
    letters = (["dead-letters", "list"], ["dead-letters", "show", "1"])
    for arguments in (["status"], ["audit"], *letters, ["tail"], coverage):
        result = command(*arguments, "--config", config)
        assert HARMLESS in result.out
        assert all(line.isprintable() for line in result.out.split("\n"))


# Coverage.


def test_coverage_shows_covered_share_gaps_and_repairs(
    command: Command, write_config_for: Callable[..., Path], migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    database = Database(engine)
    database.instance(1, "12:00", name="host1")
    for number, ticker in ((1, "AAPL"), (2, "ON")):
        database.subscription(number, ticker)
        database.state(number, 1, "live", "08:00", "10:00")
        database.state(number, 1, "disconnected", "10:00", "10:30", "the cable was pulled")
        database.state(number, 1, "live", "10:30", None)
    database.repair(1, "10:00", "10:30")
    database.repair(2, "10:00", "10:30", "failed")
    database.instance(2, "12:00", name="host2")
    database.state(2, 2, "silent", "10:20", "10:40")
    engine.dispose()
    config = write_config_for(migrated_url)
    with time_machine.travel(at("12:00"), tick=False):
        text = command("coverage", "--since", "4h", "--config", config)
        one_ticker = command("coverage", "--ticker", "ON", "--since", "2024-03-10T11:00", "--config", config)
        as_json = command("coverage", "--since", "4h", "--config", config, "--output", "json")
    found = json.loads(as_json.out)
    complete, incomplete = found["subscriptions"]
    assert (complete["ticker"], complete["percent"], complete["gaps"]) == ("AAPL", 100.0, [])
    assert complete["last_day"] == "·" * 40 + "█" * 8
    assert (incomplete["ticker"], incomplete["wanted_seconds"], incomplete["covered_seconds"]) == (
        "ON",
        14400.0,
        12600.0,
    )
    assert incomplete["last_day"] == "·" * 40 + "████x███"
    assert incomplete["gaps"] == [
        {
            "from": "2024-03-10T10:00:00+00:00",
            "to": "2024-03-10T10:30:00+00:00",
            "states": "disconnected, silent",
            "reason": "the cable was pulled",
        }
    ]
    own = [(gap["instance_name"], gap["subscription_id"], gap["covered_seconds"]) for gap in found["instance_gaps"]]
    assert own == [("host1", 1, 1800.0), ("host1", 2, 0.0), ("host2", 2, 600.0)]
    assert [repair["state"] for repair in found["repairs"]] == ["failed"]
    lines = text.out.split("\n")
    (row,) = (line.split() for line in lines if " ON " in line and "%" in line)
    assert row[1:5] == ["ON", "87.50", "%", "1"]
    assert "30m the cable was pulled" in " ".join(row)
    assert lines.index(next(line for line in lines if " ON " in line)) < lines.index(
        next(line for line in lines if " AAPL " in line)
    )
    assert (
        "host1 (instance 1) by itself: 2 gaps, 1h not received, of which 30m covered by another instance or a repair;"
        " last reason: the cable was pulled"
    ) in lines
    assert "host2 (instance 2) by itself: 1 gap, 20m not received, of which 10m covered" in text.out
    assert "failed: /real-time/crowd-sentiment ON 2024-03-10 10:00 to 2024-03-10 10:30" in text.out
    assert ("AAPL" in one_ticker.out, " 100.00 %" in one_ticker.out) == (False, True)


@pytest.mark.parametrize(("keep", "recorded"), [({}, "rewound"), ({"time": "0"}, "lost")], ids=["kept", "not kept"])
def test_command_without_daemon_records_that_the_database_does_not_know_the_spool(
    command: Command, write_config_for: Callable[..., Path], tmp_path: Path, keep: dict[str, str], recorded: str
) -> None:
    for name in ("first", "second"):
        config = write_config_for(f"sqlite:///{name}.db", spool={"keep": keep})
        for arguments in (["db", "upgrade"], ["dead-letters", "retry"], ["dead-letters", "retry"]):
            assert command(*arguments, "--config", config).code == 0
        kinds = {kind for (kind,) in sqlite3.connect(tmp_path / f"{name}.db").execute("SELECT kind FROM events")}
        assert kinds & {"lost", "rewound"} == ({recorded} if name == "second" else set())
