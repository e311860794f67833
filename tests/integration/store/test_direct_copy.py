"""Samples are copied straight into their table while batches are new; a batch that fails is merged."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from ingestor.core.entries import Frame
from ingestor.errors import DatabaseUnavailable
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store import migrate
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import audit
from ingestor.store.write.batch import WriteResult
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.copy_policy import FIRST_WAIT
from ingestor.store.write.registration import InstanceInfo
from tests.support.check_constraint import refuse
from tests.support.entries import CROWD, T0, decoder, frame, row
from tests.support.postgres_server import Postgres, fresh_database

pytestmark = pytest.mark.postgres
MANY = 600  # more rows than a merge takes as arrays

# Counts how often each kind of statement was begun on samples. Sequences are not rolled back.
COUNT_STATEMENTS = """
CREATE SEQUENCE copies MINVALUE 0; CREATE SEQUENCE merges MINVALUE 0;
CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM nextval(CASE WHEN current_query() LIKE '%COPY samples%' THEN 'copies' ELSE 'merges' END); RETURN NULL;
END $$;
CREATE TRIGGER count_statement BEFORE INSERT ON samples FOR EACH STATEMENT EXECUTE FUNCTION count_statement();
"""


@pytest.fixture
def url(postgres_server_url: str, postgres_template_url: str) -> Iterator[str]:
    with fresh_database(postgres_server_url, postgres_template_url) as url:
        with psycopg.connect(url) as connection:
            connection.execute(COUNT_STATEMENTS)
        yield url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = make_engine(url)
    yield engine
    engine.dispose()


class Daemon:
    """A batch writer that counts its entries, one frame each."""

    def __init__(self, engine: Engine, name: str = "one") -> None:
        self._info = InstanceInfo(spool_id=name, name=name, version="", config_sha256="", started_us=T0, run_id=name)
        self.database = BatchWriter(engine)
        self.register()
        self.seq = 0

    def register(self) -> None:
        self.database.register(self._info)

    def write(self, *frames: Frame | Sequence[dict[str, Any]]) -> WriteResult:
        builder = BatchBuilder(self.seq + 1, decoder())
        for item in frames:
            self.seq += 1
            builder.add((self.seq, item if isinstance(item, Frame) else frame(item)))
        return self.database.write(builder.batch)

    def write_new(self, batches: int) -> None:
        for _ in range(batches):
            assert self.write([row(f"{self._info.name} {self.seq}")]).new == 1

    def become_fast(self) -> None:
        self.write_new(FIRST_WAIT)


def tried(engine: Engine) -> tuple[int, int]:
    """Return how many COPY and how many INSERT statements were begun on samples."""
    with engine.connect() as connection:
        query = text("SELECT (SELECT last_value + is_called::int FROM copies), last_value + is_called::int FROM merges")
        copies, merges = connection.execute(query).one()
    return copies, merges


def values(engine: Engine, ticker: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        query = text("SELECT value, revision, instance_id, seq FROM observations WHERE ticker = :ticker ORDER BY ts")
        return [tuple(found) for found in connection.execute(query, {"ticker": ticker})]


def wide(minute: int, value: float = 0.5, tickers: int = MANY) -> list[dict[str, Any]]:
    return [row(f"T{number}", minute, value) for number in range(tickers)]


def test_batches_are_copied_once_a_few_in_a_row_were_all_new(engine: Engine) -> None:
    daemon = Daemon(engine)
    daemon.become_fast()
    assert tried(engine) == (0, FIRST_WAIT)
    for minute in range(3):
        assert daemon.write(wide(minute)).new == MANY
    assert tried(engine) == (3, FIRST_WAIT)
    assert values(engine, "T7") == [(0.5, 0, 1, seq) for seq in (3, 4, 5)]
    assert audit(engine) == []


def test_copied_row_equals_a_merged_one(engine: Engine) -> None:
    daemon = Daemon(engine)
    stored = []
    for batch in range(FIRST_WAIT + 1):
        envelope = {"path": CROWD, "params": {}, "timestamp": "2026-01-01T00:00:01.000Z"}
        daemon.write(frame(envelope | {"results": [row(f"T{batch}", 5, 0.1)]}, received_us=T0 + 3))
        with engine.connect() as connection:
            query = text("SELECT ts, value, revision, published_at, received_at, source, instance_id FROM samples")
            stored = connection.execute(query).all()
    assert tried(engine) == (1, FIRST_WAIT)
    assert len(stored) == FIRST_WAIT + 1
    assert len(set(stored)) == 1
    assert stored[0].published_at is not None


@pytest.mark.parametrize("place", [0, MANY // 2, MANY - 1])
@pytest.mark.parametrize(("value", "outcome"), [(0.5, (0, 1)), (0.7, (1, 0))], ids=["duplicate", "restated"])
def test_one_row_that_is_there_makes_the_whole_batch_a_merge(
    engine: Engine, place: int, value: float, outcome: tuple[int, int]
) -> None:
    daemon = Daemon(engine)
    daemon.write([row(f"T{place}")])
    daemon.become_fast()
    copies, merges = tried(engine)
    rows = wide(0)
    rows[place]["average_sentiment"] = value
    result = daemon.write(rows)
    assert (result.new, result.revised, result.duplicate) == (MANY - 1, *outcome)
    assert tried(engine) == (copies + 1, merges + 1)
    assert audit(engine) == []


def test_wait_is_longer_after_a_conflict_and_then_batches_are_copied_again(engine: Engine) -> None:
    daemon = Daemon(engine)
    daemon.become_fast()
    daemon.write([row("one 0")])
    assert tried(engine) == (1, FIRST_WAIT + 1)
    daemon.write_new(2 * FIRST_WAIT)
    assert tried(engine) == (1, FIRST_WAIT + 1 + 2 * FIRST_WAIT)
    daemon.write_new(1)
    assert tried(engine) == (2, FIRST_WAIT + 1 + 2 * FIRST_WAIT)


def test_values_twice_in_a_batch_are_copied_once(engine: Engine) -> None:
    daemon = Daemon(engine)
    daemon.become_fast()
    result = daemon.write([row("A", value=1), row("B")], [row("A", value=2), row("B")])
    assert (result.new, result.revised, result.duplicate) == (2, 1, 1)
    assert values(engine, "A") == [(2.0, 1, 1, daemon.seq)]
    assert tried(engine) == (1, FIRST_WAIT)


def test_bad_row_in_a_copy_costs_only_itself(engine: Engine) -> None:
    refuse(engine, 666)
    daemon = Daemon(engine)
    daemon.become_fast()
    rows = wide(0)
    rows[MANY // 2]["average_sentiment"] = 666
    result = daemon.write(rows)
    assert (result.new, result.dead_rows) == (MANY - 1, 1)
    copies, _ = tried(engine)
    assert copies == 1
    daemon.write([row("A", value=666), row("B")])
    assert tried(engine)[0] == copies
    assert audit(engine) == []


def test_batch_with_rows_left_out_by_a_trigger_is_merged(engine: Engine) -> None:
    daemon = Daemon(engine)
    daemon.become_fast()
    with engine.begin() as connection:
        function = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
        connection.exec_driver_sql(f"CREATE FUNCTION leave_out() {function}")
        connection.exec_driver_sql(
            "CREATE TRIGGER leave_out BEFORE INSERT ON samples FOR EACH ROW WHEN (new.value = 7)"
            " EXECUTE FUNCTION leave_out()"
        )
    result = daemon.write([row("A", value=7), row("B")])
    assert (result.new, result.duplicate) == (1, 1)
    assert tried(engine) == (1, FIRST_WAIT + 1)


def test_new_batch_takes_five_statements_prepared_where_they_can_be(postgres: Postgres) -> None:
    postgres.configure("log_statement", "all")
    engine = make_engine(postgres.url().replace("postgresql://", "postgresql+psycopg://"))
    migrate.upgrade(engine)
    daemon = Daemon(engine)
    daemon.write_new(10)
    kinds = re.findall(r"LOG:  (statement|execute) ?\w*: (\w+)", postgres.log)
    executed = [" ".join(kind) for kind in kinds]
    assert executed[-5:] == ["statement BEGIN", "execute UPDATE", "statement COPY", "execute WITH", "statement COMMIT"]
    engine.dispose()


@pytest.mark.parametrize("again", ["registered", "restarted"])
def test_writer_that_begins_merges_first(engine: Engine, again: str) -> None:
    daemon = Daemon(engine)
    daemon.become_fast()
    daemon.write_new(1)
    copies, merges = tried(engine)
    if again == "registered":
        daemon.register()
    else:
        daemon.database = BatchWriter(engine)
        daemon.register()
    daemon.write_new(1)
    assert tried(engine) == (copies, merges + 1)


def test_failed_commit_of_a_copy_is_written_again(engine: Engine) -> None:
    daemon = Daemon(engine)
    daemon.become_fast()
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
        )
        connection.exec_driver_sql("CREATE TRIGGER end_session AFTER INSERT ON batches EXECUTE FUNCTION end_session()")
    with pytest.raises(DatabaseUnavailable):
        daemon.write([row("A")])
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER end_session ON batches")
    daemon.register()
    daemon.seq -= 1
    assert daemon.write([row("A")]).new == 1
    assert audit(engine) == []


def test_two_daemons_that_receive_the_same_store_it_once(engine: Engine, url: str) -> None:
    other_engine = make_engine(url)
    one, two = Daemon(engine), Daemon(other_engine, "two")
    for minute in range(30):  # the first instance writes before the other in five of seven
        first, second = (one, two) if minute % 7 < 5 else (two, one)
        assert first.write(wide(minute)).new == MANY
        assert second.write(wide(minute)).duplicate == MANY
    copies, merges = tried(engine)
    assert 0 < copies < 30 < merges
    assert audit(engine) == []
    other_engine.dispose()


def test_two_daemons_that_copy_the_same_at_once_do_not_deadlock(engine: Engine, url: str) -> None:
    """Each gets the rows in another order. They are copied slowly, so that the two meet."""
    other_engine = make_engine(url)
    daemons = Daemon(engine), Daemon(other_engine, "two")
    for daemon in daemons:
        daemon.become_fast()
    with engine.begin() as connection:
        function = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN new; END $$"
        connection.exec_driver_sql(f"CREATE FUNCTION wait() {function}")
        connection.exec_driver_sql("CREATE TRIGGER wait BEFORE INSERT ON samples FOR EACH ROW EXECUTE FUNCTION wait()")
    rows, results = wide(0, tickers=30), list[WriteResult]()
    received = ((daemons[0], rows), (daemons[1], rows[::-1]))
    threads = [threading.Thread(target=lambda d, r: results.append(d.write(r)), args=each) for each in received]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((result.new, result.duplicate) for result in results) == [(0, 30), (30, 0)]
    assert tried(engine)[0] == 2
    assert audit(engine) == []
    other_engine.dispose()
