"""PostgreSQL sessions: settings made by others, what the URL says, and encodings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Engine, text

from ingestor.config.urls import normalize_database_url
from ingestor.errors import DatabaseUnavailable
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store import migrate
from ingestor.store.engine import fetch_all, make_engine, transaction
from ingestor.store.postgres_session import connection_parameters
from ingestor.store.read.tail import latest_observations
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.integration.conftest import Command
from tests.support.entries import T0, decoder, frame, row
from tests.support.postgres_server import USER, Postgres, free_port, fresh_database

pytestmark = pytest.mark.postgres

HOSTILE = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "America/St_Johns",
    "extra_float_digits": "-3",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "statement_timeout": "1d",
    "lock_timeout": "1d",
    "idle_session_timeout": "1h",
}
VALUE = 0.1 + 0.2  # 17 digits


@contextmanager
def opened(url: str, **options: bool) -> Iterator[Engine]:
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"), **options)
    try:
        yield engine
    finally:
        engine.dispose()


def execute(url: str, *statements: str) -> None:
    # Also where the sessions of the database are read-only.
    with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def write_rows(engine: Engine, *tickers: str) -> None:
    """Write one frame as the first batch of a new instance."""
    writer = BatchWriter(engine)
    info = InstanceInfo(spool_id=ascii(tickers), name="", version="", config_sha256="", started_us=T0)
    writer.register(info)
    builder = BatchBuilder(1, decoder())
    rows = json.dumps([row(ticker, value=VALUE) for ticker in tickers], ensure_ascii=False)
    builder.add((1, frame(rows)))
    writer.write(builder.batch)


# -- settings that others make


def set_in_database(url: str) -> str:
    name = url.rpartition("/")[2]
    execute(url, *(f"ALTER DATABASE {name} SET {key} = '{value}'" for key, value in HOSTILE.items()))
    return url


def set_for_role(url: str) -> str:
    name = url.rpartition("/")[2]
    alter = f"ALTER ROLE {USER} IN DATABASE {name} SET"
    execute(url, *(f"{alter} {key} = '{value}'" for key, value in HOSTILE.items()))
    return url


def set_in_url(url: str) -> str:
    relied_on = {key: value for key, value in HOSTILE.items() if not key.endswith("timeout")}  # these may be set there
    options = " ".join(f"-c {key}={value.replace(' ', chr(92) + ' ')}" for key, value in relied_on.items())
    return f"{url}?options={quote(options)}"


@pytest.mark.parametrize("set_by_others", [set_in_database, set_for_role, set_in_url])
def test_settings_that_others_make_change_nothing(postgres_url: str, set_by_others: Callable[[str], str]) -> None:
    with opened(set_by_others(postgres_url)) as engine:
        migrate.upgrade(engine)
        write_rows(engine, "AAPL")
        (stored,) = latest_observations(engine, limit=9)
        assert (stored["ticker"], stored["value"], stored["ts"].utcoffset().total_seconds()) == ("AAPL", VALUE, 0)
        shown = dict(fetch_all(engine, text("SELECT name, setting FROM pg_settings")))
        assert {name: shown[name] for name in HOSTILE} == {
            "DateStyle": "ISO, YMD",
            "IntervalStyle": "postgres",
            "TimeZone": "UTC",
            "extra_float_digits": "3",
            "standard_conforming_strings": "on",
            "array_nulls": "on",
            "client_encoding": "UTF8",
            "default_transaction_isolation": "read committed",
            "synchronous_commit": "on",
            "statement_timeout": "60000",
            "lock_timeout": "15000",
            "idle_session_timeout": "0",
        }


def test_row_level_security_is_an_error_instead_of_missing_rows(postgres_url: str) -> None:
    with opened(postgres_url) as engine:
        migrate.upgrade(engine)
        execute(
            postgres_url,
            "ALTER TABLE instances ENABLE ROW LEVEL SECURITY",
            "DROP ROLE IF EXISTS reader",
            "CREATE ROLE reader LOGIN",
            "GRANT SELECT ON instances TO reader",
        )
        try:
            with (
                opened(postgres_url.replace(USER, "reader", 1)) as other,
                pytest.raises(DatabaseUnavailable, match="a permission is missing: query would be affected by row"),
            ):
                fetch_all(other, text("SELECT * FROM instances"))
        finally:
            execute(postgres_url, "DROP OWNED BY reader", "DROP ROLE reader")


# -- a session that cannot be used any more


def test_read_only_session_is_replaced_by_new_one(postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    with opened(postgres_url) as engine:
        migrate.upgrade(engine)
        execute(postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        engine.dispose()
        with pytest.raises(DatabaseUnavailable, match="the session is read-only: cannot execute"):
            write_rows(engine, "AAPL")
        execute(postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        write_rows(engine, "AAPL")


FAILURES = {
    "statement": "SELECT * FROM not_there",
    "COPY": "COPY not_there FROM STDIN",
}


@pytest.mark.parametrize("statement", FAILURES.values(), ids=FAILURES)
def test_any_lasting_failure_is_followed_by_new_connection(postgres_url: str, statement: str) -> None:
    def backend_pid() -> int:
        with transaction(engine) as connection:
            return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())

    with opened(postgres_url) as engine:
        before = backend_pid()
        assert backend_pid() == before
        with pytest.raises(DatabaseUnavailable), transaction(engine) as connection:
            if statement.startswith("COPY"):
                with connection.connection.cursor().copy(statement):
                    pass
            connection.exec_driver_sql(statement)
        assert backend_pid() != before


# -- what the URL says


def test_two_schemas_in_one_database_are_independent(postgres_url: str) -> None:
    execute(postgres_url, "CREATE SCHEMA one", "CREATE SCHEMA two")
    for schema, ticker in (("one", "AAPL"), ("two", "TSLA")):
        with opened(f"{postgres_url}?options=-csearch_path%3D{schema}") as engine:
            assert migrate.current_revision(engine) is None
            migrate.upgrade(engine)
            migrate.verify_revision(engine)
            write_rows(engine, ticker)
            tickers = {stored["ticker"] for stored in latest_observations(engine, limit=9)}
            assert tickers == {ticker}
            assert [row.ticker for row in fetch_all(engine, text("SELECT ticker FROM crowd_sentiment"))] == [ticker]
    with psycopg.connect(postgres_url) as connection:
        places = connection.execute(
            "SELECT table_schema, count(*) FROM information_schema.tables WHERE table_schema !~ '^pg_|^inf' GROUP BY 1"
        ).fetchall()
    assert {schema for schema, _ in places} == {"one", "two"}
    assert len({count for _, count in places}) == 1


def test_missing_schema_of_search_path_is_named(
    command: Command, write_config_for: Callable[..., Path], postgres_url: str
) -> None:
    config = write_config_for(f"{postgres_url}?options=-csearch_path%3Dnowhere")
    result = command("db", "upgrade", "--config", config)
    assert result.code == 69
    assert (
        "there is no such schema: no schema has been selected to create in; create it, or fix search_path" in result.err
    )


def test_url_may_set_timeouts_and_names(postgres_url: str) -> None:
    options = quote("-c statement_timeout=7s -c idle_session_timeout=8s")
    with opened(
        f"{postgres_url}?options={options}&application_name=mine&connect_timeout=3&keepalives_idle=4"
    ) as engine:
        assert [
            tuple(line)
            for line in fetch_all(
                engine,
                text(
                    "SELECT current_setting('statement_timeout'), current_setting('idle_session_timeout'),"
                    " current_setting('lock_timeout'), current_setting('application_name')"
                ),
            )
        ] == [("7s", "8s", "15s", "mine")]
        with engine.connect() as connection:
            parameters = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
        assert (parameters["connect_timeout"], parameters["keepalives_idle"]) == ("3", "4")
        assert (parameters["keepalives_interval"], parameters["tcp_user_timeout"]) == ("10", "50000")
    with opened(postgres_url) as engine:
        assert fetch_all(engine, text("SELECT current_setting('application_name')"))[0][0] == "ingestor"


def test_password_file_of_url_is_read(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("*:*:*:*:secret of the file\n")
    (tmp_path / "passwords").chmod(0o600)
    with opened(f"{postgres_url}?passfile={tmp_path}/passwords") as engine, engine.connect() as connection:
        assert connection.connection.driver_connection.pgconn.password == b"secret of the file"  # type: ignore[union-attr]


def test_service_file_and_socket_in_place_of_the_host_are_honoured(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quote(str(postgres.socket_folder), safe="")
    with opened(f"postgresql://{USER}@{folder}:{postgres.port}/postgres") as engine:
        assert fetch_all(engine, text("SELECT inet_server_addr()")) == [(None,)]
    lines = ["[market]", f"host={postgres.socket_folder}", f"port={postgres.port}", f"user={USER}", "dbname=postgres"]
    (tmp_path / "services").write_text("\n".join([*lines, "application_name=by service"]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    with opened(normalize_database_url("postgresql:///?service=market", tmp_path)) as engine:
        assert fetch_all(engine, text("SELECT current_setting('application_name')")) == [("by service",)]


@pytest.mark.parametrize(
    "written",
    [
        "{user}@127.0.0.1:{closed},127.0.0.1:{open}/postgres?target_session_attrs=read-write",
        "{user}@127.0.0.1:{closed},127.0.0.1,127.0.0.1:{open}/postgres",
        "{user}@127.0.0.1:{open},localhost:{closed}/postgres",
        "{user}@/postgres?host=127.0.0.1:{closed}&host=127.0.0.1:{open}",
        "{user}@/postgres?host=127.0.0.1,localhost&port={closed},{open}",
        "{user}@not-there.invalid:{open},{folder}:{open}/postgres",
        "{user}@/postgres?host=[::1]:{closed},127.0.0.1:{open}",
    ],
)
def test_each_host_of_the_url_is_tried(postgres: Postgres, tmp_path: Path, written: str) -> None:
    folder = quote(str(postgres.socket_folder), safe="")
    url = written.format(user=USER, closed=free_port(), open=postgres.port, folder=folder)
    with opened(normalize_database_url(f"postgresql://{url}", tmp_path)) as engine:
        assert fetch_all(engine, text("SELECT current_setting('port')")) == [(str(postgres.port),)]


TARGETS = {
    ("h1,h2/d", ""): "read-write",
    ("/d?hostaddr=10.0.0.1,10.0.0.2", ""): "read-write",
    ("h1,h2/d?target_session_attrs=any", ""): "any",
    ("h1,h2/d", "primary"): None,
    ("h/d", ""): None,
}


@pytest.mark.parametrize(("written", "target"), TARGETS.items(), ids=map(str, TARGETS))
def test_several_hosts_are_searched_for_the_one_that_accepts_writes(
    monkeypatch: pytest.MonkeyPatch, written: tuple[str, str], target: str | None
) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", written[1])
    assert connection_parameters(f"postgresql+psycopg://{written[0]}").get("target_session_attrs") == target


WRONG_URLS = {
    "postgresql://u:hunter2@h/d?statement_timeout=5": 'database.url has the parameter "statement_timeout", which',
    "postgresql://u:hunter2@h/d?autocommit=1": 'database.url has the parameter "autocommit", which',
    "postgresql://u:hunter%zz2@h/d": "database.url cannot be parsed by PostgreSQL's library",
    "postgresql://u:hunter2@/d?host=a,b&port=1,2,3": "database.url: has lists of different lengths",
}


@pytest.mark.parametrize(("url", "sentence"), WRONG_URLS.items(), ids=WRONG_URLS.values())
def test_wrong_url_is_refused_by_name_without_its_password(
    command: Command, write_config_for: Callable[..., Path], url: str, sentence: str
) -> None:
    result = command("db", "upgrade", "--config", write_config_for(url))
    assert (result.code, result.out) == (78, "")
    assert sentence in result.err
    assert "hunter" not in result.err


@pytest.mark.parametrize("migrated", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-cdefault_transaction_read_only=on", "the session is read-only"),
        ("-csearch_path=nowhere", "there is no such schema"),
        ("-crole=pg_monitor", "a permission is missing"),
    ],
)
def test_check_finds_that_a_database_cannot_be_written(
    command: Command,
    write_config_for: Callable[..., Path],
    postgres_url: str,
    migrated: bool,
    options: str,
    message: str,
) -> None:
    if migrated:
        with opened(postgres_url) as engine:
            migrate.upgrade(engine)
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO pg_monitor")
    result = command("check", "--config", write_config_for(f"{postgres_url}?options={quote(options)}"))
    assert message in result.out
    assert "✗ database" in result.out


# -- encodings


def test_database_in_sql_ascii_is_refused_by_name(
    command: Command, write_config_for: Callable[..., Path], postgres_server_url: str
) -> None:
    with fresh_database(postgres_server_url, encoding="SQL_ASCII") as url:
        for arguments in (["db", "upgrade"], ["check"], ["tail"]):
            result = command(*arguments, "--config", write_config_for(url))
            assert "the database has the encoding SQL_ASCII" in result.out + result.err
            assert "ENCODING 'UTF8'" in result.out + result.err
            assert "Traceback" not in result.err
            assert result.code == 78


def test_database_in_latin1_stores_what_it_has_characters_for(postgres_server_url: str) -> None:
    with fresh_database(postgres_server_url, encoding="LATIN1") as url, opened(url) as engine:
        migrate.upgrade(engine)
        write_rows(engine, "CAFÉ", "ПРАВДА")
        (stored,) = latest_observations(engine, limit=9)
        assert stored["ticker"] == "CAFÉ"
        (letter,) = fetch_all(engine, text("SELECT reason, body FROM dead_letters"))
        assert (letter.reason, json.loads(letter.body)["ticker"]) == ("rejected by the database", "ПРАВДА")
        (payload,) = fetch_all(engine, text("SELECT body FROM payloads"))
        assert [row["ticker"] for row in json.loads(payload.body)] == ["CAFÉ", "ПРАВДА"]


# -- messages


def unreachable(_: str) -> str:
    return f"postgresql://{USER}@127.0.0.1:{free_port()}/x"


REFUSALS = {
    r"the database server cannot be reached: 127.0.0.1:\d+: Connection refused": unreachable,
    'there is no such database: .*"nowhere" does not exist': lambda url: url.rpartition("/")[0] + "/nowhere",
    "there is no such database user: .*role": lambda url: url.replace(USER, "nobody_known", 1),
    "the connection cannot be encrypted as asked: ": lambda url: f"{url}?sslmode=require",
    "this is not the server that was asked for: ": lambda url: f"{url}?target_session_attrs=standby",
    "the database server refused a setting: .*no_such": lambda url: f"{url}?options=-cno_such%3D1",
}


@pytest.mark.parametrize(("sentence", "change"), REFUSALS.items(), ids=[key.partition(":")[0] for key in REFUSALS])
def test_refused_connection_says_why(postgres_url: str, sentence: str, change: Callable[[str], str]) -> None:
    with opened(change(postgres_url)) as engine, pytest.raises(DatabaseUnavailable, match=sentence) as raised:
        fetch_all(engine, text("SELECT 1"))
    assert "; " in str(raised.value)
