"""Migrations: from an empty database to the current schema, exactly once, also with concurrent starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from alembic import command
from sqlalchemy import Engine, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from ingestor.errors import IngestorError, SchemaTooNew, SchemaTooOld, SchemaUnsupported
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


def test_upgrade_creates_every_table_and_view(empty_engine: Engine) -> None:
    migrate.upgrade(empty_engine)
    found = inspect(empty_engine)
    assert set(found.get_table_names()) == {*metadata.tables, "alembic_version"}
    assert set(found.get_view_names()) == {view.name for view in views.VIEWS}
    assert migrate.current_revision(empty_engine) == migrate.head_revision()


def test_views_have_the_declared_columns(engine: Engine) -> None:
    found = inspect(engine)
    described = {view.name: [column.name for column in view.columns] for view in views.VIEWS}
    assert {name: [column["name"] for column in found.get_columns(name)] for name in described} == described


def test_views_of_empty_tables_are_empty(engine: Engine) -> None:
    with engine.connect() as connection:
        assert {view.name: connection.execute(select(view)).all() for view in views.VIEWS} == {
            view.name: [] for view in views.VIEWS
        }


def test_metadata_matches_the_migrations(engine: Engine) -> None:
    migrate.check_metadata(engine)


def test_check_metadata_reports_an_unknown_column(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE leases ADD COLUMN surprise INTEGER"))
    with pytest.raises(IngestorError, match="surprise"):
        migrate.check_metadata(engine)


def test_upgrade_keeps_existing_rows(engine: Engine) -> None:
    row = {"name": "heal", "instance_id": 7, "until": at("10:00")}
    with engine.begin() as connection:
        connection.execute(insert(leases), row)
    migrate.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(select(leases)).mappings().all() == [row]


def test_concurrent_upgrades_run_one_after_the_other(empty_engine: Engine) -> None:
    empty_engine.connect().close()  # switching SQLite to WAL does not wait for another process that does so too
    url = empty_engine.url.render_as_string(hide_password=False)
    # Processes, because Alembic keeps its state in globals.
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


def test_failed_migration_is_rolled_back(empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE observations (in_the_way INTEGER)"))
    with pytest.raises(Exception, match="observations"):
        migrate.upgrade(empty_engine)
    assert inspect(empty_engine).get_table_names() == ["observations"]


def test_newer_schema_is_refused_unchanged(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (migrate.upgrade, migrate.verify_revision):
        with pytest.raises(SchemaTooNew, match=f"9999.*{migrate.head_revision()}.*install the newer"):
            call(engine)
    assert migrate.current_revision(engine) == "9999"


@pytest.mark.parametrize("revision", ["0001", "0006", "0001_tables", "0002_views", "0005_payload_blocks"])
def test_pre_release_schema_is_refused_unchanged(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    for call in (migrate.upgrade, migrate.verify_revision):
        with pytest.raises(SchemaUnsupported, match=f"{revision} of a pre-release.*ingestor export.*database.url"):
            call(engine)
    assert migrate.current_revision(engine) == revision


def test_empty_database_is_too_old(empty_engine: Engine) -> None:
    with pytest.raises(SchemaTooOld, match=r"no tables yet.*ingestor db upgrade"):
        migrate.verify_revision(empty_engine)


@pytest.mark.postgres
def test_upgrade_stays_in_the_schema_of_the_tables(postgres_url: str) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    engine, later = make_engine(url), make_engine(f"{url}?options=-csearch_path%3Dyounger,public")
    with engine.connect() as connection, migrate._exclusive_transaction(connection):
        command.upgrade(migrate._config(connection), "v1_0001_tables")
        connection.exec_driver_sql("CREATE SCHEMA younger")
    migrate.upgrade(later)
    migrate.verify_revision(engine)
    inspector = inspect(engine)
    assert inspector.get_table_names("younger") + inspector.get_view_names("younger") == []
    assert "observations" in inspector.get_view_names("public")
    engine.dispose()
    later.dispose()


def test_older_schema_is_refused_until_upgraded(empty_engine: Engine) -> None:
    with empty_engine.connect() as connection, migrate._exclusive_transaction(connection):
        command.upgrade(migrate._config(connection), "v1_0001_tables")
    with pytest.raises(SchemaTooOld, match=f"schema v1_0001_tables .* needs schema {migrate.head_revision()}"):
        migrate.verify_revision(empty_engine)
    migrate.upgrade(empty_engine)
    migrate.verify_revision(empty_engine)
    migrate.check_metadata(empty_engine)


def test_older_view_of_payloads_is_replaced(empty_engine: Engine) -> None:
    with empty_engine.connect() as connection, migrate._exclusive_transaction(connection):
        command.upgrade(migrate._config(connection), "v1_0003_payloads")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v1_0002_views'")
    migrate.upgrade(empty_engine)
    migrate.verify_revision(empty_engine)
    with empty_engine.connect() as connection:
        assert connection.execute(select(views.payloads)).all() == []


def test_alembic_command_uses_the_configured_database(
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


def test_downgrade_is_refused(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(RuntimeError, match="restore a backup"):
        command.downgrade(migrate._config(connection), "base")


@pytest.mark.parametrize("row_index", [0, None])
def test_dead_letter_is_unique(engine: Engine, row_index: int | None) -> None:
    row = {"instance_id": 1, "seq": 5, "row_index": row_index, "received_at": at("10:00"), "stage": "decode"}
    with engine.begin() as connection:
        connection.execute(insert(dead_letters), row)
        connection.execute(insert(dead_letters), {**row, "row_index": 1})
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(insert(dead_letters), row)


def test_times_round_trip_to_the_microsecond(engine: Engine) -> None:
    until = at("23:59:59.999999")
    with engine.begin() as connection:
        connection.execute(insert(leases), {"name": "heal", "instance_id": 1, "until": until})
    with engine.connect() as connection:
        assert connection.scalar(select(leases.c.until)) == until


def test_naive_time_is_refused(engine: Engine) -> None:
    row = {"name": "heal", "instance_id": 1, "until": at("10:00").replace(tzinfo=None)}
    with pytest.raises(Exception, match="naive datetime 2024-03-10T10:00:00"), engine.begin() as connection:
        connection.execute(insert(leases), row)
