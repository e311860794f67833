"""From an empty database to the schema, once, whoever starts at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from alembic import command
from sqlalchemy import Engine, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from ingestor.errors import IngestorError, SchemaTooNew, SchemaTooOld
from ingestor.store import migrate, views
from ingestor.store.engine import make_engine
from ingestor.store.schema import dead_letters, leases, metadata

from .row_factory import at

URL_OF_DRIVER = ("postgresql://", "postgresql+psycopg://")
START = """
import sys
from ingestor.store import engine, migrate
migrate.head_revision()
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(engine.make_engine(sys.argv[1]))
"""


def test_an_empty_database_gets_every_table_and_view(empty_engine: Engine) -> None:
    migrate.upgrade(empty_engine)
    found = inspect(empty_engine)
    assert set(found.get_table_names()) == {*metadata.tables, "alembic_version"}
    assert set(found.get_view_names()) == {view.name for view in views.VIEWS}
    assert migrate.current_revision(empty_engine) == migrate.head_revision()


def test_each_view_has_the_columns_that_it_is_read_by(engine: Engine) -> None:
    found = inspect(engine)
    described = {view.name: [column.name for column in view.columns] for view in views.VIEWS}
    assert {name: [column["name"] for column in found.get_columns(name)] for name in described} == described


def test_each_view_of_nothing_is_empty(engine: Engine) -> None:
    with engine.connect() as connection:
        assert {view.name: connection.execute(select(view)).all() for view in views.VIEWS} == {
            view.name: [] for view in views.VIEWS
        }


def test_metadata_and_migrations_describe_the_same_schema(engine: Engine) -> None:
    migrate.check_metadata(engine)


def test_a_column_that_no_migration_made_is_found(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE leases ADD COLUMN surprise INTEGER"))
    with pytest.raises(IngestorError, match="surprise"):
        migrate.check_metadata(engine)


def test_an_upgrade_keeps_what_is_there(engine: Engine) -> None:
    row = {"name": "heal", "instance_id": 7, "until": at("10:00")}
    with engine.begin() as connection:
        connection.execute(insert(leases), row)
    migrate.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(select(leases)).mappings().all() == [row]


def test_of_two_that_start_together_one_migrates_and_the_other_waits(empty_engine: Engine) -> None:
    empty_engine.connect().close()  # SQLite switches to WAL here, and does not wait for another that does so too
    url = empty_engine.url.render_as_string(hide_password=False)
    # Processes, as in life: Alembic keeps what it works on in globals.
    starts = [
        subprocess.Popen([sys.executable, "-c", START, url], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        for _ in range(2)
    ]
    for start in starts:
        assert start.stdout.readline() == "ready\n"
    for start in starts:
        start.stdin.write("go\n")
        start.stdin.flush()
    assert [start.communicate(timeout=30) for start in starts] == [("", "")] * 2
    migrate.verify_revision(empty_engine)


def test_a_migration_that_fails_leaves_nothing_behind(empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE observations (in_the_way INTEGER)"))
    with pytest.raises(Exception, match="observations"):
        migrate.upgrade(empty_engine)
    assert inspect(empty_engine).get_table_names() == ["observations"]


def test_a_database_of_a_newer_program_is_refused_untouched(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (migrate.upgrade, migrate.verify_revision):
        with pytest.raises(SchemaTooNew, match=f"9999.*{migrate.head_revision()}.*install the newer"):
            call(engine)
    assert migrate.current_revision(engine) == "9999"


def test_an_empty_database_is_older_than_the_program(empty_engine: Engine) -> None:
    with pytest.raises(SchemaTooOld, match=r"no tables yet.*ingestor db upgrade"):
        migrate.verify_revision(empty_engine)


def test_a_database_behind_the_program_is_older_and_an_upgrade_mends_it(empty_engine: Engine) -> None:
    with empty_engine.connect() as connection, migrate._locked(connection):
        command.upgrade(migrate._config(connection), "0001")
    with pytest.raises(SchemaTooOld, match=f"schema 0001 .* needs schema {migrate.head_revision()}"):
        migrate.verify_revision(empty_engine)
    migrate.upgrade(empty_engine)
    migrate.verify_revision(empty_engine)
    migrate.check_metadata(empty_engine)


def test_alembic_itself_finds_the_database_through_the_config(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"database: {{url: '{database_url}'}}\nsubscriptions: [{{path: /real-time/crowd-sentiment}}]\n")
    config.chmod(0o600)
    monkeypatch.setenv("INGESTOR_CONFIG", str(config))
    command.upgrade(migrate._config(), "head")
    engine = make_engine(database_url.replace(*URL_OF_DRIVER))
    migrate.verify_revision(engine)
    engine.dispose()


def test_there_is_no_way_down(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(RuntimeError, match="restore a backup"):
        command.downgrade(migrate._config(connection), "base")


@pytest.mark.parametrize("row_index", [0, None])
def test_a_dead_letter_cannot_be_written_twice(engine: Engine, row_index: int | None) -> None:
    row = {"instance_id": 1, "seq": 5, "row_index": row_index, "received_at": at("10:00"), "stage": "decode"}
    with engine.begin() as connection:
        connection.execute(insert(dead_letters), row)
        connection.execute(insert(dead_letters), {**row, "row_index": 1})
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(insert(dead_letters), row)


def test_times_are_read_as_they_were_written_to_the_microsecond(engine: Engine) -> None:
    until = at("23:59:59.999999")
    with engine.begin() as connection:
        connection.execute(insert(leases), {"name": "heal", "instance_id": 1, "until": until})
    with engine.connect() as connection:
        assert connection.scalar(select(leases.c.until)) == until


def test_a_time_without_zone_is_refused(engine: Engine) -> None:
    row = {"name": "heal", "instance_id": 1, "until": at("10:00").replace(tzinfo=None)}
    with pytest.raises(Exception, match="naive datetime 2024-03-10T10:00:00"), engine.begin() as connection:
        connection.execute(insert(leases), row)
