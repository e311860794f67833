"""`ingestor db copy`: the other database has the same rows, or the command says where it has not."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from ingestor.commands.db_copy import copy_database, open_target
from ingestor.errors import (
    AlreadyLocked,
    CopyRejected,
    PermissionDenied,
    PositionConflict,
    SchemaTooOld,
    SchemaUnsupported,
)
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store import migrate, schema
from ingestor.store.copy import copier, table_access
from ingestor.store.engine import make_engine
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, SpoolExtent
from tests.integration.conftest import Command
from tests.integration.store.row_factory import single_payload
from tests.support import postgres_server as pg
from tests.support.db_reader import DbReader
from tests.support.entries import T0, decoder, fact, frame, row

pytestmark = pytest.mark.postgres

AT = datetime(2026, 1, 31, 14, 5, 9, 250_001, tzinfo=UTC)
EVERYTHING = [form.table.name for form in (*copier.HISTORY, *copier.LAST)]


def driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(params=["sqlite postgres", "postgres sqlite"])
def urls(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path, postgres_server_url: str
) -> Iterator[tuple[str, str]]:
    """URLs of a database with tables, and of one that is empty or does not exist."""
    kind, other = request.param.split()
    template = request.getfixturevalue("postgres_template_url")
    with pg.fresh_database(postgres_server_url, template) as full, pg.fresh_database(postgres_server_url) as empty:
        if kind == "sqlite":
            (tmp_path / "source.db").write_bytes(sqlite_template.read_bytes())
            full = f"sqlite:///{tmp_path}/source.db"
        yield driver(full), driver(empty) if other == "postgres" else f"sqlite:///{tmp_path}/target.db"


KINDS = ("sqlite", "postgres")
EACH_DIRECTION = pytest.mark.parametrize("urls", [f"{one} {other}" for one in KINDS for other in KINDS], indirect=True)
ONE_DIRECTION = pytest.mark.parametrize("urls", ["sqlite postgres"], indirect=True)


@pytest.fixture
def source(urls: tuple[str, str]) -> Iterator[Engine]:
    engine = make_engine(urls[0])
    fill(engine)
    yield engine
    engine.dispose()


def fill(engine: Engine) -> None:
    """Write as a daemon does, and add a row with extreme values to each table."""
    writer = BatchWriter(engine)
    info = InstanceInfo(spool_id="s" * 32, name="hôst", version="1", config_sha256="", started_us=T0)
    writer.register(info, SpoolExtent(1))
    builder = BatchBuilder(1, decoder())
    for seq, entry in enumerate([frame([row(value=1), row("ON", minute=1)]), frame([row(value=2)]), fact()], start=1):
        builder.add((seq, entry))
    writer.write(builder.batch)
    writer.publish_heartbeat(T0, {("/p", "{}"): T0})
    value = {"revision": 1, "ts": AT, "received_at": AT, "seq": 2**62, "instance_id": 7, "source": "stream"}
    rows: dict[str, list[dict[str, Any]]] = {
        "series": [{"series_id": 1000, "feed": "é", "metric": "m", "ticker": "", "user_id": "u", "first_seen_at": AT}],
        "samples": [
            value | {"series_id": 1000, "value": -0.1, "published_at": None},
            value | {"series_id": 1000, "ts": AT + timedelta(microseconds=1), "value": -0.0, "published_at": AT},
            value | {"series_id": -1, "value": 1.7976931348623157e308, "published_at": AT},
        ],
        "sample_revisions": [value | {"series_id": 1000, "value": 5e-324, "published_at": None}],
        "deletions": [{"before": AT - timedelta(days=n), "deleted_at": AT, "instance_id": 7} for n in range(3)],
        "payload_blocks": [
            single_payload(7, seq, AT, row_count=1, body=body, published_at=None)
            for seq, body in enumerate(["", "\N{PILE OF POO}" * 2_000, "x" * 5_000, "[]"], start=1)
        ],
        "dead_letters": [
            {"instance_id": 7, "seq": 1, "row_index": index, "received_at": AT, "stage": "decode", "body": "\t\n'\\"}
            for index in (None, 0, 1)
        ],
        "repairs": [
            {"subscription_id": 1, "from_ts": AT, "to_ts": AT, "kind": "manual", "state": "open", "created_at": AT}
        ],
        "coverage": [
            {"subscription_id": 1, "instance_id": 7, "start_seq": 1, "started_at": AT, "state": "live", "ended_at": end}
            for end in (None,)
        ],
        "subscriptions": [
            {"subscription_id": 500, "path": "/p", "method": "get", "params": "{}", "first_seen_at": AT}
        ],
        "connections": [{"instance_id": 7, "path": path, "params": "{}", "heard_at": AT} for path in "aBÄ"],
        "leases": [{"name": "repair", "instance_id": 1, "until": AT}],
        "instances": [{"instance_id": 7, "spool_id": "other", "position": 4, "started_at": AT, "stepped_back": True}],
    }  # fmt: skip
    with engine.begin() as connection:
        for name, values in rows.items():
            connection.execute(schema.metadata.tables[name].insert(), values)


def run(source: Engine, url: str) -> list[copier.CopiedTable]:
    with open_target(source, url) as target:
        return copy_database(source, target, lambda _step, _rows: None)


def read_everything(url: str) -> dict[str, list[Any]]:
    """Return the rows of each table as plain drivers read them."""
    reader = DbReader(url.replace("+psycopg", ""))
    columns = {name: sorted(column.name for column in schema.metadata.tables[name].columns) for name in EVERYTHING}
    return {
        name: sorted((tuple(row[column] for column in names) for row in reader.rows(f"SELECT * FROM {name}")), key=repr)
        for name, names in (
            (name, [n for n in columns[name] if n not in ("stepped_back", "at", "until", "before", "from_ts", "to_ts")])
            for name in EVERYTHING
        )
    }


def execute(url: str, statement: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute(statement)
    else:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute(statement)


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_access, "RANGE_ROWS", 2)
    monkeypatch.setattr(table_access, "RANGE_BYTES", 4_000)


@EACH_DIRECTION
@pytest.mark.usefixtures("small_ranges")
def test_copy_has_every_row_of_every_table(source: Engine, urls: tuple[str, str]) -> None:
    tables = run(source, urls[1])
    assert [table.name for table in tables] == EVERYTHING
    assert [table for table in tables if not table.equal or table.rows != table.target_rows or not table.rows] == []
    assert read_everything(urls[1]) == read_everything(urls[0])
    assert DbReader(urls[1].replace("+psycopg", "")).column("SELECT count(*) FROM leases") == [0]
    assert not any(table.written for table in run(source, urls[1])[:-2])  # nothing differs


@pytest.mark.usefixtures("small_ranges")
def test_repeated_copy_follows_what_was_added_changed_and_deleted(source: Engine, urls: tuple[str, str]) -> None:
    run(source, urls[1])
    execute(urls[0], "DELETE FROM payload_blocks WHERE first_seq < 3")
    execute(urls[0], "DELETE FROM samples WHERE series_id = 1000")
    execute(urls[0], "UPDATE coverage SET reason = 'x'")
    execute(urls[0], "UPDATE instances SET position = position + 1")
    assert all(table.equal for table in run(source, urls[1]))
    assert read_everything(urls[1]) == read_everything(urls[0])


def test_daemon_continues_with_free_ids(source: Engine, urls: tuple[str, str]) -> None:
    run(source, urls[1])
    engine = make_engine(urls[1])
    writer = BatchWriter(engine)
    info = InstanceInfo(spool_id="s" * 32, name="host", version="1", config_sha256="", started_us=T0)
    assert writer.register(info, SpoolExtent(1)).position == 3
    builder = BatchBuilder(4, decoder())
    builder.add((4, frame([row("NEW"), {"ticker": "bad"}, row(value=3)])))
    writer.write(builder.batch)
    assert (
        BatchWriter(engine).register(InstanceInfo(**{**vars_of(info), "spool_id": "n"}), SpoolExtent(1)).position == 0
    )
    engine.dispose()
    db = DbReader(urls[1].replace("+psycopg", ""))
    assert db.scalar("SELECT series_id FROM series WHERE ticker = 'NEW'") == 1001
    assert db.scalar("SELECT max(instance_id) FROM instances") == 8


def vars_of(info: InstanceInfo) -> dict[str, Any]:
    return {name: getattr(info, name) for name in info.__slots__}


class Interrupted(Exception):
    """The copy ends here."""


@pytest.mark.usefixtures("small_ranges")
def test_unfinished_copy_is_refused_by_name_and_can_be_continued(source: Engine, urls: tuple[str, str]) -> None:
    for stop_after in (3, 30):
        steps = 0

        def advance(_step: str, _rows: int, limit: int = stop_after) -> None:
            nonlocal steps
            steps += 1
            if steps == limit:
                raise Interrupted

        with suppress(Interrupted), open_target(source, urls[1]) as target:
            copy_database(source, target, advance)
        engine = make_engine(urls[1])
        for call in (migrate.upgrade, migrate.verify_revision):
            with pytest.raises(SchemaUnsupported, match=r"unfinished copy.*ingestor db copy"):
                call(engine)
        engine.dispose()
        assert DbReader(urls[1].replace("+psycopg", "")).scalar("SELECT count(*) FROM instances") == 0
    assert all(table.equal for table in run(source, urls[1]))
    assert read_everything(urls[1]) == read_everything(urls[0])


_END_CONNECTION_WITH_LOCK = """
SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database
WHERE locktype = 'advisory' AND datname = current_database()
"""


@ONE_DIRECTION
def test_copy_is_complete_although_the_idle_connection_with_the_lock_was_lost(
    source: Engine, urls: tuple[str, str]
) -> None:
    with open_target(source, urls[1]) as target:
        assert DbReader(urls[1].replace("+psycopg", "")).column(_END_CONNECTION_WITH_LOCK) == [True]
        assert all(table.equal for table in copy_database(source, target, lambda _step, _rows: None))
    assert read_everything(urls[1]) == read_everything(urls[0])


@ONE_DIRECTION
def test_unfinished_copy_of_another_database_is_refused(source: Engine, urls: tuple[str, str]) -> None:
    with open_target(source, urls[1]):
        pass
    execute(urls[0], "UPDATE instances SET spool_id = 'z' WHERE instance_id = 1")
    with pytest.raises(PermissionDenied, match="--into: it is an unfinished copy of another database"):
        run(source, urls[1])


CHANGES_BY_OTHERS = {
    "a newer position": ("UPDATE instances SET position = 9", "instance 1 that the source lacks"),
    "another spool": ("UPDATE instances SET spool_id = 'z' WHERE instance_id = 1", "instance 1 that the source lacks"),
    "an instance more": ("UPDATE instances SET instance_id = 99 WHERE instance_id = 7", "instance 99 that the source"),
    "another batch": ("UPDATE batches SET last_seq = 2", "its ledger of instance 1 is not the source"),
    "rows without instances": ("DELETE FROM instances", "rows of unknown origin"),
}


@ONE_DIRECTION
@pytest.mark.parametrize("change", CHANGES_BY_OTHERS)
def test_target_with_history_of_its_own_is_refused_and_unchanged(
    source: Engine, urls: tuple[str, str], change: str
) -> None:
    run(source, urls[1])
    execute(urls[1], CHANGES_BY_OTHERS[change][0])
    before = read_everything(urls[1])
    with pytest.raises(PermissionDenied, match=CHANGES_BY_OTHERS[change][1]):
        run(source, urls[1])
    assert read_everything(urls[1]) == before
    engine = make_engine(urls[1])
    migrate.verify_revision(engine)
    engine.dispose()


@ONE_DIRECTION
def test_writer_of_the_target_is_refused_while_copy_is_unfinished(source: Engine, urls: tuple[str, str]) -> None:
    run(source, urls[1])
    engine = make_engine(urls[1])
    writer = BatchWriter(engine)
    info = InstanceInfo(spool_id="s" * 32, name="host", version="1", config_sha256="", started_us=T0)
    writer.register(info, SpoolExtent(1))
    with open_target(source, urls[1]), pytest.raises(PositionConflict):
        writer.publish_heartbeat(T0)
    engine.dispose()


@ONE_DIRECTION
def test_second_copy_at_the_same_time_is_refused(source: Engine, urls: tuple[str, str]) -> None:
    with (
        open_target(source, urls[1]),
        pytest.raises(AlreadyLocked, match="another process copies"),
        open_target(source, urls[1]),
    ):
        pass


def test_source_itself_is_refused(source: Engine, urls: tuple[str, str]) -> None:
    with pytest.raises(PermissionDenied, match="database to copy from"):
        run(source, urls[0].replace("127.0.0.1", "localhost"))


@ONE_DIRECTION
def test_old_or_unfinished_source_is_refused(source: Engine, urls: tuple[str, str]) -> None:
    execute(urls[0], "UPDATE alembic_version SET version_num = 'v1_0001_tables'")
    with pytest.raises(SchemaTooOld, match="ingestor db upgrade"):
        run(source, urls[1])
    execute(urls[0], "UPDATE alembic_version SET version_num = 'copy_0'")
    with pytest.raises(SchemaUnsupported, match="unfinished copy"):
        run(source, urls[1])


@ONE_DIRECTION
@pytest.mark.usefixtures("small_ranges")
def test_difference_is_named_with_its_table_and_range(
    command: Command, write_config_for: Callable[..., Path], source: Engine, urls: tuple[str, str]
) -> None:
    with open_target(source, urls[1]):
        pass
    execute(
        urls[1],
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.series_id = 1000 THEN NEW.value = 7; END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER spoil BEFORE INSERT ON sample_revisions FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    arguments = ("db", "copy", "--into", urls[1], "--config", write_config_for(urls[0]))
    ended = command(*arguments)
    assert ended.code == 1
    (line,) = (line for line in ended.out.splitlines() if line.startswith("sample_revisions"))
    assert "DIFFERENT" in line
    assert "to series_id 1000, ts 2026-01-31 14:05:09.250001, revision 1" in line
    assert "repeat the command" in ended.out
    assert "compared samples: " in ended.err  # no terminal: a line per step
    execute(urls[1], "DROP TRIGGER spoil ON sample_revisions")
    ended = command(*arguments, "--output", "json")
    found = json.loads(ended.out)
    assert (ended.code, found["equal"]) == (0, True)
    assert [table["name"] for table in found["tables"] if table["written"]] == ["sample_revisions"]


@ONE_DIRECTION
def test_password_of_the_target_is_not_printed(
    command: Command, write_config_for: Callable[..., Path], source: Engine, urls: tuple[str, str]
) -> None:
    secret = re.sub(r":\d+/", ":1/", urls[1].replace("ingestor@", "ingestor:hunter2secret@"))
    ended = command("db", "copy", "--into", secret, "--config", write_config_for(urls[0]))
    assert (ended.code, ended.out) == (69, "")
    assert "hunter2secret" not in ended.err
    assert "127.0.0.1" in ended.err


@ONE_DIRECTION
def test_rejected_row_is_named_with_its_range(source: Engine, urls: tuple[str, str]) -> None:
    execute(urls[0], "UPDATE payload_blocks SET body = 'a' || char(0) || 'b' WHERE first_seq = 4")
    with pytest.raises(CopyRejected, match=r"^payload_blocks, from the first row to .*: the target rejects a row: "):
        run(source, urls[1])


@ONE_DIRECTION
@pytest.mark.usefixtures("small_ranges")
def test_what_a_daemon_writes_meanwhile_is_in_the_copy_or_behind_its_position(
    source: Engine, urls: tuple[str, str]
) -> None:
    writer = BatchWriter(source)
    info = InstanceInfo(spool_id="w", name="writer", version="1", config_sha256="", started_us=T0)
    writer.register(info, SpoolExtent(1))
    seq = 0

    def advance(_step: str, _rows: int) -> None:
        nonlocal seq
        seq += 1
        builder = BatchBuilder(seq, decoder())
        builder.add((seq, frame([row("LATE", minute=seq)])))
        writer.write(builder.batch)

    reader = make_engine(urls[0], read_only=True)
    with open_target(reader, urls[1]) as target:
        tables = copy_database(reader, target, advance)
        assert all(table.equal for table in tables)
        with target.connect() as connection:
            position = connection.execute(text("SELECT position FROM instances WHERE spool_id = 'w'")).scalar_one()
            late = "SELECT count(*) FROM observations WHERE ticker = 'LATE'"
            assert 0 < position == connection.execute(text(late)).scalar_one() < seq
    reader.dispose()


@pytest.mark.parametrize("urls", ["postgres sqlite"], indirect=True)
def test_rows_are_counted_for_as_long_as_it_takes(source: Engine, urls: tuple[str, str]) -> None:
    expected = 2 * sum(len(read_everything(urls[0])[form.table.name]) for form in copier.HISTORY)
    with source.begin() as connection:
        connection.execute(text("ALTER TABLE repairs RENAME TO stored"))
        connection.execute(text("CREATE VIEW repairs AS SELECT * FROM stored WHERE pg_sleep(1.5) IS NOT NULL"))
    impatient = make_engine(f"{urls[0]}{'&' if '?' in urls[0] else '?'}options=-c%20statement_timeout%3D1000")
    assert copier.count_rows(impatient) == expected
    impatient.dispose()
