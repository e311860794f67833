"""The classification of database errors: retry the same batch, or bisect it. With real databases where possible."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text

from ingestor.errors import BatchRejected, DatabaseUnavailable
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store import migrate, transaction_watchdog
from ingestor.store.engine import make_engine, transaction, translate_errors
from ingestor.store.write.batch import Batch
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.support.check_constraint import refuse, refuse_all
from tests.support.entries import T0, decoder, frame, row
from tests.support.postgres_server import Postgres, free_port, fresh_database

Act = Callable[[Engine], None]


def run(*statements: str) -> Act:
    """Statements in one transaction, the last of which fails."""

    def act(engine: Engine) -> None:
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    return act


def raised(sqlstate: str) -> Act:
    """An error that a server raises only in a state that a test cannot cause."""
    return run(f"DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{sqlstate}'; END $$")


def classify(engine: Engine, act: Act) -> type[Exception]:
    with pytest.raises((BatchRejected, DatabaseUnavailable)) as caught, translate_errors():
        act(engine)
    return caught.type


# -- PostgreSQL


@pytest.fixture(scope="module")
def on_postgres(postgres_server_url: str, postgres_template_url: str) -> Iterator[Engine]:
    """A database of its own, so that other connections can get in the way."""
    with fresh_database(postgres_server_url, postgres_template_url) as url:
        engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        yield engine
        engine.dispose()


def deadlock(engine: Engine) -> None:
    """Two transactions that wait for each other; the one that checks for a deadlock first is the victim."""
    with engine.connect() as connection, engine.connect() as other:
        for holder, number in ((connection, 1), (other, 2)):
            holder.exec_driver_sql(f"SELECT pg_advisory_xact_lock({number})")
        other.exec_driver_sql("SET LOCAL deadlock_timeout = '10s'")
        connection.exec_driver_sql("SET LOCAL deadlock_timeout = '100ms'")
        waiting = threading.Thread(target=other.exec_driver_sql, args=("SELECT pg_advisory_xact_lock(1)",))
        waiting.start()
        try:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(2)")
        finally:
            connection.rollback()
            waiting.join()


def serialization(engine: Engine) -> None:
    with engine.connect() as connection, engine.connect() as other:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.exec_driver_sql("SELECT * FROM leases")
        other.exec_driver_sql(
            "INSERT INTO leases VALUES ('x', 1, now()) ON CONFLICT (name) DO UPDATE SET until = now()"
        )
        other.commit()
        connection.exec_driver_sql(
            "INSERT INTO leases VALUES ('x', 1, now()) ON CONFLICT (name) DO UPDATE SET until = now()"
        )


def locked(engine: Engine) -> None:
    with engine.connect() as connection, engine.connect() as other:
        other.exec_driver_sql("LOCK TABLE leases")
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10ms'")
        connection.exec_driver_sql("SELECT * FROM leases")


def terminated(engine: Engine) -> None:
    with engine.connect() as connection, engine.connect() as other:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
        connection.exec_driver_sql("SELECT 1")


def copied(engine: Engine) -> None:
    """COPY bypasses SQLAlchemy, and so do its errors."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE few (number integer CHECK (number > 0)) ON COMMIT DROP")
        with connection.connection.cursor().copy("COPY few FROM STDIN") as copy:
            copy.write_row([-1])


def unstorable(engine: Engine) -> None:
    """The driver rejects it before the server sees it."""
    with engine.begin() as connection:
        connection.execute(text("SELECT :text"), {"text": "\0"})


def unencodable(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT :text"), {"text": "\ud800"})


CHECKED = "CREATE TEMPORARY TABLE few (number integer CHECK (number > 0)) ON COMMIT DROP"
POSTGRES = [
    pytest.param(run(CHECKED, "INSERT INTO few VALUES (-1)"), BatchRejected, id="23514 check"),
    pytest.param(run("INSERT INTO leases VALUES (NULL, 1, now())"), BatchRejected, id="23502 not null"),
    pytest.param(run(*["INSERT INTO leases VALUES ('y', 1, now())"] * 2), BatchRejected, id="23505 unique"),
    pytest.param(run("SELECT 1e400::float8"), BatchRejected, id="22003 out of range"),
    pytest.param(run("SELECT convert('€', 'UTF8', 'LATIN1')"), BatchRejected, id="22P05 untranslatable"),
    pytest.param(run(r"SELECT convert_from('\xff', 'UTF8')"), BatchRejected, id="22021 not in the encoding"),
    pytest.param(run("SELECT 'x'::timestamptz"), BatchRejected, id="22007 not a time"),
    pytest.param(run("SELECT repeat('x', 1 << 30)"), BatchRejected, id="54000 over a limit"),
    pytest.param(copied, BatchRejected, id="check, in COPY"),
    pytest.param(unstorable, BatchRejected, id="NUL, refused by the driver"),
    pytest.param(unencodable, BatchRejected, id="surrogate, refused by the driver"),
    pytest.param(deadlock, DatabaseUnavailable, id="40P01 deadlock"),
    pytest.param(serialization, DatabaseUnavailable, id="40001 serialization"),
    pytest.param(locked, DatabaseUnavailable, id="55P03 lock timeout"),
    pytest.param(
        run("SET LOCAL statement_timeout = '10ms'", "SELECT pg_sleep(9)"), DatabaseUnavailable, id="57014 timeout"
    ),
    pytest.param(terminated, DatabaseUnavailable, id="57P01 terminated"),
    pytest.param(
        run("SET TRANSACTION READ ONLY", "INSERT INTO leases VALUES ('z', 1, now())"),
        DatabaseUnavailable,
        id="25006 read-only",
    ),
    pytest.param(run("SELECT * FROM not_there"), DatabaseUnavailable, id="42P01 no such table"),
    pytest.param(run("SET LOCAL ROLE pg_monitor", "SELECT * FROM leases"), DatabaseUnavailable, id="42501 no right"),
    *(
        pytest.param(raised(state), DatabaseUnavailable, id=f"{state} {name}")
        for state, name in (
            ("53100", "disk full"),
            ("53200", "out of memory"),
            ("53300", "too many connections"),
            ("57P02", "crash"),
            ("57P03", "starting up"),
            ("58030", "I/O error"),
            ("08006", "connection failure"),
            ("XX001", "data corrupted"),
        )
    ),
]


@pytest.mark.postgres
@pytest.mark.parametrize(("act", "expected"), POSTGRES)
def test_postgresql_error_is_classified(on_postgres: Engine, act: Act, expected: type[Exception]) -> None:
    assert classify(on_postgres, act) is expected


@pytest.mark.postgres
def test_unreachable_server_is_unavailable() -> None:
    engine = make_engine(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    assert classify(engine, run("SELECT 1")) is DatabaseUnavailable


@pytest.mark.postgres
def test_server_stopped_during_a_transaction_is_unavailable(postgres: Postgres) -> None:
    engine = make_engine(postgres.url().replace("postgresql://", "postgresql+psycopg://"))

    def stopped(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            postgres.stop("immediate")
            connection.exec_driver_sql("SELECT 1")

    assert classify(engine, stopped) is DatabaseUnavailable
    engine.dispose()


def waits_in(statement: str) -> Act:
    """Wait for too long, in a statement or in COPY."""

    def act(engine: Engine) -> None:
        with transaction(engine) as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            if statement.startswith("COPY"):
                with connection.connection.cursor().copy(statement) as copy:
                    copy.read()
            connection.exec_driver_sql(statement)

    return act


@pytest.mark.postgres
@pytest.mark.parametrize("statement", ["SELECT pg_sleep(60)", "COPY (SELECT pg_sleep(60)) TO STDOUT"])
def test_server_that_stops_responding_becomes_unavailable(
    on_postgres: Engine, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_watchdog, "TRANSACTION_TIMEOUT_SECONDS", 0.5)
    assert classify(on_postgres, waits_in(statement)) is DatabaseUnavailable
    with on_postgres.connect() as another:
        assert another.exec_driver_sql("SELECT 1").scalar_one() == 1


@pytest.mark.postgres
def test_suspended_server_does_not_block_the_writer_forever(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_watchdog, "TRANSACTION_TIMEOUT_SECONDS", 0.5)
    engine = make_engine(postgres.url().replace("postgresql://", "postgresql+psycopg://"))
    migrate.upgrade(engine)
    database = BatchWriter(engine)
    instance = InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0)
    database.register(instance)
    postgres.pause()
    with pytest.raises(DatabaseUnavailable):
        database.write(batch(1, bad=None))
    postgres.resume()
    database.register(instance)
    assert database.write(batch(1, bad=None)).new == 1000
    engine.dispose()


# -- SQLite


@pytest.fixture
def on_sqlite(tmp_path: Path, sqlite_template: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'ingestor.db')}")
    yield engine
    engine.dispose()


INSERT = "INSERT INTO leases VALUES ('x', 1, '')"


def full(engine: Engine) -> None:
    run("PRAGMA max_page_count = 1", "INSERT INTO events VALUES (1, 1, '', '', zeroblob(1000000))")(engine)


def busy(engine: Engine) -> None:
    with closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as other:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        run(INSERT)(engine)


def table_locked(engine: Engine) -> None:
    with engine.begin() as connection:
        reading = connection.exec_driver_sql("SELECT name FROM sqlite_master")
        reading.fetchone()
        connection.exec_driver_sql("DROP TABLE leases")


def read_only(engine: Engine) -> None:
    reader = make_engine(str(engine.url), read_only=True)
    try:
        run(INSERT)(reader)
    finally:
        reader.dispose()


def no_folder(engine: Engine) -> None:
    run("SELECT 1")(make_engine(f"{engine.url}.not-there/ingestor.db"))


def not_a_database(engine: Engine) -> None:
    path = Path(str(engine.url.database)).with_name("other.db")
    path.write_bytes(b"not a database" * 1000)
    run("SELECT 1")(make_engine(f"sqlite:///{path}"))


def too_big(engine: Engine) -> None:
    with engine.begin() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
        connection.exec_driver_sql("INSERT INTO events VALUES (1, 1, '', '', ?)", ("x" * 2000,))


def bound(value: object) -> Act:
    def act(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO events VALUES (1, ?, '', '', '')", (value,))

    return act


def io_error(_: Engine) -> None:
    """What the driver raises when a disk fails."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    raise error


SQLITE = [
    pytest.param(run(INSERT, INSERT), BatchRejected, id="CONSTRAINT unique"),
    pytest.param(run("INSERT INTO leases VALUES (NULL, 1, '')"), BatchRejected, id="CONSTRAINT not null"),
    pytest.param(
        run(
            "CREATE TEMPORARY TRIGGER no BEFORE INSERT ON leases BEGIN SELECT raise(ABORT, 'no'); END",
            INSERT,
        ),
        BatchRejected,
        id="CONSTRAINT trigger",
    ),
    pytest.param(
        run("INSERT INTO series VALUES ('x', '', '', '', '', '')"), BatchRejected, id="MISMATCH text for a row's id"
    ),
    pytest.param(too_big, BatchRejected, id="TOOBIG"),
    pytest.param(bound(2**63), BatchRejected, id="over 64 bits, refused by the driver"),
    pytest.param(bound("\ud800"), BatchRejected, id="surrogate, refused by the driver"),
    pytest.param(full, DatabaseUnavailable, id="FULL"),
    pytest.param(busy, DatabaseUnavailable, id="BUSY"),
    pytest.param(table_locked, DatabaseUnavailable, id="LOCKED"),
    pytest.param(read_only, DatabaseUnavailable, id="READONLY"),
    pytest.param(no_folder, DatabaseUnavailable, id="CANTOPEN"),
    pytest.param(not_a_database, DatabaseUnavailable, id="NOTADB"),
    pytest.param(io_error, DatabaseUnavailable, id="IOERR"),
    pytest.param(run("SELECT * FROM not_there"), DatabaseUnavailable, id="ERROR no such table"),
]


@pytest.mark.parametrize(("act", "expected"), SQLITE)
def test_sqlite_error_is_classified(on_sqlite: Engine, act: Act, expected: type[Exception]) -> None:
    assert classify(on_sqlite, act) is expected


# -- the cost of a rejection


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


def batch(first_seq: int, *, bad: int | None) -> Batch:
    """A frame of 1,000 rows, one of which the database rejects."""
    rows = [row(f"T{number}", minute=first_seq) for number in range(1000)]
    if bad is not None:
        rows[bad]["average_sentiment"] = 666
    builder = BatchBuilder(first_seq, decoder())
    builder.add((first_seq, frame(rows)))
    return builder.batch


@pytest.mark.parametrize("bad", [0, 500, 999])
def test_one_bad_row_of_1000_costs_22_savepoints_at_most(engine: Engine, bad: int) -> None:
    refuse(engine, 666)
    database = BatchWriter(engine)
    database.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0))
    database.write(batch(1, bad=None))
    attempts = Counter[str]()
    event.listen(engine, "savepoint", lambda _connection, name: attempts.update(["savepoints"]))
    written = database.write(batch(2, bad=bad))
    assert (written.new, written.dead_rows) == (999, 1)
    assert attempts["savepoints"] <= 2 * 10 + 2  # 1,000 is halved ten times; and the whole batch, and the probe


def test_unwell_database_is_unavailable_at_the_first_rejected_row(engine: Engine) -> None:
    refuse(engine, 666)
    refuse_all(engine, "dead_letters")
    database = BatchWriter(engine)
    database.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0))
    attempts = Counter[str]()
    event.listen(engine, "savepoint", lambda _connection, name: attempts.update(["savepoints"]))
    # Were the rest of the batch bisected first, the database could recover meanwhile, and take what it had rejected
    # before as dead letters.
    with pytest.raises(DatabaseUnavailable, match="rejects rows, and dead letters too"):
        database.write(batch(1, bad=0))
    assert attempts["savepoints"] <= 12


@pytest.fixture
def failing_engine(postgres_server_url: str, postgres_template_url: str) -> Iterator[Engine]:
    """A database that rejects 666, and has no space left for 667."""
    with fresh_database(postgres_server_url, postgres_template_url) as url:
        engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        refuse(engine, 666)
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE 'disk full' USING ERRCODE = '53100'; END $$;"
                "CREATE TRIGGER fail BEFORE INSERT ON samples FOR EACH ROW WHEN (new.value = 667)"
                " EXECUTE FUNCTION fail()"
            )
        yield engine
        engine.dispose()


@pytest.mark.postgres
def test_connection_that_fails_while_rows_are_isolated_is_replaced(failing_engine: Engine) -> None:
    database = BatchWriter(failing_engine)
    database.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0))
    builder = BatchBuilder(1, decoder())
    builder.add((1, frame([row("A", value=666), row("B", value=667)])))
    used = []
    event.listen(failing_engine, "savepoint", lambda connection, _: used.append(connection.connection.dbapi_connection))
    with pytest.raises(DatabaseUnavailable, match="disk"):
        database.write(builder.batch)
    with transaction(failing_engine) as connection:
        assert connection.connection.dbapi_connection is not used[-1]


def test_connection_is_kept_although_the_clock_was_set_back_after_a_failure(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer takes a new connection for another database, and would register before every transaction."""
    with pytest.raises(DatabaseUnavailable), transaction(engine) as connection:
        connection.exec_driver_sql("SELECT no_such_column FROM instances")
    an_hour_ago = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: an_hour_ago)
    used = []
    for _ in range(2):
        with transaction(engine) as connection:
            used.append(connection.connection.driver_connection)
    assert used[0] is used[1]
