"""`changes` returns each value once, whatever is written between two reads: all of them together are the tables."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text

from ingestor.core.times import to_us
from ingestor.store import schema, views
from ingestor.store.engine import make_engine
from ingestor.store.maintenance.retention import Retention
from ingestor.store.read.changes import SQLITE, changes
from ingestor.store.write.batch import Batch, SampleRow
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo

from .row_factory import Database, at
from .test_retention import keep

START_US = to_us(at("10:00"))
MINUTE_US, DAY_US = 60_000_000, 86_400_000_000
Value = tuple[Any, ...]


class Spool:
    """Writes batches of random values as one instance, and writes them again after its position went back."""

    def __init__(self, engine: Engine, spool_id: str, pick: random.Random) -> None:
        self.engine, self.pick, self.spool_id = engine, pick, spool_id
        self.batches: list[Batch] = []
        self._written = 0  # of these
        self._run = 0
        self.register()

    def register(self) -> None:
        self._run += 1
        self._writer = BatchWriter(self.engine)
        names = {"spool_id": self.spool_id, "run_id": str(self._run), "name": "", "version": "", "config_sha256": ""}
        self._writer.register(InstanceInfo(**names, started_us=START_US))

    def write(self, tickers: str, minutes: range, *, days_back: int = 0, source: str = "stream") -> None:
        """Write a batch of an entry for each minute, of which the last one is a fact."""
        first = self.batches[-1].last_seq + 1 if self.batches else 1
        rows = [
            SampleRow(
                ("crowd-sentiment", "crowd_sentiment", ticker, ""),
                START_US + minute * MINUTE_US - days_back * DAY_US,
                self.pick.randrange(4) / 4,
                None,
                START_US + (minute + self.pick.randrange(3)) * MINUTE_US,
                source,
                first + number,
                0,
            )
            for number, minute in enumerate(minutes)
            for ticker in tickers
        ]
        self.batches.append(Batch(first_seq=first, last_seq=first + len(minutes), rows=rows, row_count=len(rows)))
        self.write_again()

    def write_again(self) -> None:
        """Write the batches that the database lacks."""
        for batch in self.batches[self._written :]:
            self._writer.write(batch)
        self._written = len(self.batches)

    def rewind(self, batches: int) -> None:
        """Let the database go back, as a standby that lagged, by so many batches of this instance."""
        self._written = max(self._written - batches, 0)
        position = self.batches[self._written - 1].last_seq if self._written else 0
        own = f"instance_id = {self._writer.instance_id}"
        with self.engine.begin() as connection:
            for table, seq in (("samples", "seq"), ("sample_revisions", "seq"), ("batches", "first_seq")):
                connection.execute(text(f"DELETE FROM {table} WHERE {own} AND {seq} > {position}"))
            connection.execute(text(f"UPDATE instances SET position = {position} WHERE {own}"))
        self.register()


class Reader:
    """Reads what is new with a cursor, as an analyst's program does."""

    def __init__(self, engine: Engine) -> None:
        self.url = engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
        self.cursor = ""
        self.told: list[Value] = []
        self.deleted: list[Any] = []

    def poll(self) -> list[Value]:
        """Return the new values, and remember all."""
        rows, self.cursor = changes(self.url, self.cursor)
        self.deleted += [row["ts"] for row in rows if row["kind"] == "deleted"]
        values = [value_of(row) for row in rows if row["kind"] != "deleted"]
        self.told += values
        return values


def value_of(row: Any) -> Value:
    return tuple(row[name] for name in ("feed", "metric", "ticker", "ts", "value", "received_at", "instance_id", "seq"))


def tables(db: Database) -> Counter[Value]:
    """Return all values that are stored, with how often."""
    found: list[Value] = []
    for view in (views.observations, views.revisions):
        names = [column.name for column in view.columns]
        found += [value_of(dict(zip(names, row, strict=True))) for row in db.read(view)]
    return Counter(found)


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


@pytest.fixture
def spool(engine: Engine) -> Spool:
    return Spool(engine, "spool-a", random.Random(0))


@pytest.fixture
def reader(engine: Engine) -> Reader:
    return Reader(engine)


@pytest.mark.parametrize("seed", range(4))
def test_reads_between_writes_tell_each_value_once(engine: Engine, db: Database, reader: Reader, seed: int) -> None:
    pick = random.Random(seed)
    spools = [Spool(engine, f"spool-{name}", pick) for name in "ab"]
    sizes = []
    for step in range(40):
        spool = pick.choice(spools)
        tickers = "".join(pick.sample("ABCD", 2))
        if pick.random() < 0.3:  # a backfill, or a repair
            days = pick.choice((0, 1, 3))
            spool.write(tickers, range(0, pick.choice((30, 3 * 1440)), 7), days_back=days, source="backfill")
        else:
            spool.write(tickers, range(step, step + pick.randrange(1, 4)))
        if pick.random() < 0.4:
            sizes.append(len(reader.poll()))
    reader.poll()
    assert Counter(reader.told) == tables(db)
    assert set(tables(db).values()) == {1}
    assert len([size for size in sizes if size]) > 5
    assert reader.poll() == []
    notes = (
        db.engine.connect().execute(text("SELECT count(*) FROM batches WHERE series_ranges IS NOT NULL")).scalar_one()
    )
    assert notes > 2


def test_value_that_became_a_revision_is_not_told_again(spool: Spool, reader: Reader) -> None:
    spool.pick = random.Random(1)
    spool.write("A", range(1))
    (first,) = reader.poll()
    while True:
        spool.write("A", range(1))
        if new := reader.poll():
            assert new[0] != first and new[0][:4] == first[:4]
            break


def test_cursor_does_not_go_back_with_the_database(spool: Spool, reader: Reader, db: Database) -> None:
    for minute in range(0, 40, 4):
        spool.write("AB", range(minute, minute + 4))
    reader.poll()
    spool.rewind(3)
    assert reader.poll() == []
    spool.write_again()
    assert reader.poll() == []
    spool.write("AB", range(40, 44))
    assert len(reader.poll()) == 8
    assert Counter(reader.told) == tables(db)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM batches",  # such as after `replay --into`
        "DELETE FROM batches WHERE first_seq > 10",
        "UPDATE batches SET from_ts = NULL, to_ts = NULL, series_ranges = NULL",  # of an older program
        "UPDATE batches SET from_ts = NULL, to_ts = NULL, series_ranges = NULL WHERE first_seq < 8",
    ],
)
def test_batches_without_notes_are_read_in_full(spool: Spool, reader: Reader, db: Database, statement: str) -> None:
    spool.write("AB", range(2))
    reader.poll()
    for day in range(4):
        spool.write("AB", range(4), days_back=day)
    with db.engine.begin() as connection:
        connection.execute(text(statement))
    reader.poll()
    assert Counter(reader.told) == tables(db)


def test_ledger_that_retention_compacted_is_read_in_full(spool: Spool, reader: Reader, db: Database) -> None:
    for day in range(4):
        spool.write("AB", range(4), days_back=day)
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE batches SET committed_at = '2024-03-10 10:00:00+00'"))
    retention = Retention(db.engine, keep(journal="1h"))
    while retention.step(1, to_us(at("23:00"))).has_more:
        pass
    with db.engine.connect() as connection:
        ledger = connection.execute(text("SELECT first_seq, last_seq, from_ts, series_ranges FROM batches")).all()
    assert ledger == [(1, 20, None, None)]
    spool.write("AB", range(10, 12))
    reader.poll()
    assert Counter(reader.told) == tables(db)


def test_deletions_are_told_once(spool: Spool, reader: Reader, db: Database) -> None:
    spool.write("A", range(2))
    reader.poll()
    db.add("deletions", before=at("00:00"), deleted_at=at("10:00"), instance_id=1)
    reader.poll()
    reader.poll()
    assert reader.deleted == [at("00:00")]
    db.add("deletions", before=at("+1 00:00"), deleted_at=at("+1 10:00"), instance_id=1)
    reader.poll()
    assert reader.deleted == [at("00:00"), at("+1 00:00")]


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "[]",
        "{}",
        '{"positions": 5}',
        '{"positions": {"spool-a": "x"}}',
        '{"positions": {"spool-a": null}}',
        '{"positions": {"spool-a": 9223372036854775808}}',
        '{"positions": {}, "deleted": 5}',
    ],
)
def test_text_that_is_no_cursor_is_refused(spool: Spool, reader: Reader, cursor: str) -> None:
    spool.write("A", range(1))
    with pytest.raises(ValueError, match="cursor="):
        changes(reader.url, cursor)


def test_cursor_of_now_begins_with_what_comes_next(engine: Engine, spool: Spool, reader: Reader, db: Database) -> None:
    assert db.read(views.change_cursor) != []
    spool.write("AB", range(3))
    db.add("deletions", before=at("00:00"), deleted_at=at("10:00"), instance_id=1)
    ((reader.cursor,),) = db.read(views.change_cursor)
    assert reader.poll() == []
    spool.write("AB", range(3, 4))
    assert len(reader.poll()) == 2
    assert reader.deleted == []
    assert json.loads(reader.cursor) == {"positions": {"spool-a": 6}, "deleted": "2024-03-10 00:00:00"}


def test_instance_id_that_is_given_again_does_not_hide_values(spool: Spool, reader: Reader, engine: Engine) -> None:
    """As after a restore, when the spool of another daemon is registered first."""
    spool.write("A", range(9))
    reader.poll()
    with engine.begin() as connection:
        for table in ("samples", "sample_revisions", "batches", "instances"):
            connection.execute(text(f"DELETE FROM {table}"))
    other = Spool(engine, "spool-b", random.Random(5))
    other.write("A", range(3))
    assert len(reader.poll()) == 3


def test_ledger_notes_ranges_of_series_only_if_they_are_long(spool: Spool, engine: Engine) -> None:
    spool.write("AB", range(5))
    spool.write("AB", range(0, 3 * 1440, 1440))
    spool.write("", range(2))
    with engine.connect() as connection:
        first, last, empty = connection.execute(schema.batches.select().order_by(schema.batches.c.first_seq)).all()
    assert (first.from_ts, first.to_ts, first.series_ranges) == (at("10:00"), at("10:04"), None)
    assert (last.from_ts, last.to_ts) == (at("10:00"), at("+2 10:00"))
    assert json.loads(last.series_ranges) == [[n, "2024-03-10 10:00:00", "2024-03-12 10:00:00"] for n in (1, 2)]
    assert (empty.from_ts, empty.to_ts, empty.series_ranges) == (None, None, None)


def add_samples_of_another_instance(db: Database, count: int) -> None:
    """Add samples of the first series, of an instance without a ledger."""
    sample = {"series_id": 1, "value": 1.0, "received_at": at("10:00"), "instance_id": 9, "source": "stream"}
    rows = [sample | {"ts": at("09:00") - timedelta(minutes=number), "seq": number} for number in range(count)]
    with db.engine.begin() as connection:
        connection.execute(insert(schema.samples), rows)
    db.instance(9, "10:00", position=count, spool_id="old")


def test_cost_does_not_grow_with_what_was_read_before(
    engine: Engine, db: Database, spool: Spool, reader: Reader
) -> None:
    spool.write("A", range(1))
    add_samples_of_another_instance(db, 5_000)
    reader.cursor = json.dumps({"positions": {"old": 5_000, "spool-a": 2}})
    spool.write("B", range(1, 3))
    if engine.dialect.name == "sqlite":
        other = make_engine(str(engine.url))
        steps: list[None] = []
        event.listen(other, "connect", lambda c, _: c.set_progress_handler(lambda: steps.append(None), 100))
        with other.connect() as connection:
            assert len(connection.execute(text(SQLITE), {"cursor": reader.cursor}).all()) == 2
        other.dispose()
        assert len(steps) * 100 < 5_000
    else:
        with engine.connect() as connection:
            connection.execute(text("ANALYZE"))
            read = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname = 'samples'"
            before = connection.execute(text(read)).scalar_one()
            assert len(connection.execute(text("SELECT * FROM changes(:c)"), {"c": reader.cursor}).all()) == 2
            assert connection.execute(text(read)).scalar_one() - before < 20
