"""`ingestor.read`: the observations of a feed as an Arrow table; nothing is guessed about times and names."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any

import polars
import pyarrow
import pytest

import ingestor
from ingestor.errors import DatabaseUnavailable, MissingExtra, UnknownName
from ingestor.store import views
from ingestor.store.engine import make_engine
from ingestor.store.read import sample_columns
from tests.integration.store.row_factory import Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")


@pytest.fixture
def db(migrated_url: str) -> Iterator[Database]:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    database = Database(engine)
    for ticker in "BA":
        for minute in range(5):
            database.sample(*CROWD, ticker, f"10:0{minute}", minute / 4, received_at=at(f"10:0{minute}:01.5"))
    database.sample("tweet-volume", "volume", "C", "10:00", 3.0)
    yield database
    engine.dispose()


def keys(table: pyarrow.Table) -> list[tuple[str, int]]:
    return [(row["ticker"], row["ts"].minute) for row in table.to_pylist()]


def test_read_returns_what_the_view_has(db: Database, migrated_url: str) -> None:
    db.sample(*CROWD, "A", "10:05", -0.1, revision=2, published_at=at("06:00"), source="backfill", seq=2**40)
    table = ingestor.read(migrated_url, "crowd-sentiment")
    with db.engine.connect() as connection:
        view = connection.exec_driver_sql("SELECT * FROM observations WHERE feed = 'crowd-sentiment'")
        assert table.column_names == list(view.keys())
    found = sorted(tuple(row.values()) for row in table.to_pylist())
    assert found == db.read(views.observations, feed="crowd-sentiment")
    assert keys(table) == [("A", minute) for minute in range(6)] + [("B", minute) for minute in range(5)]


def test_read_selects_tickers_times_and_columns(db: Database, migrated_url: str) -> None:
    start = at("10:01").astimezone(timezone(timedelta(hours=-5)))
    table = ingestor.read(migrated_url, "crowd-sentiment", tickers="A", start=start, end=at("10:03"))
    assert keys(table) == [("A", 1), ("A", 2)]
    db.sample(*CROWD, "AB", "10:00", 0.5)
    assert keys(ingestor.read(migrated_url, "crowd-sentiment", tickers="AB")) == [("AB", 0)]
    table = ingestor.read(migrated_url, "crowd-sentiment", tickers=["B", "A"], columns=["value", "ts"])
    assert table.column_names == ["value", "ts"]
    assert table["value"].to_pylist() == [0.0, 0.25, 0.5, 0.75, 1.0] * 2


def test_read_takes_tickers_of_any_collection_but_none_of_an_empty_one(db: Database, migrated_url: str) -> None:
    table = ingestor.read(migrated_url, "crowd-sentiment", tickers=polars.Series(["A", "B"]))
    assert table.num_rows == 10
    with pytest.raises(ValueError, match="tickers is empty"):
        ingestor.read(migrated_url, "crowd-sentiment", tickers=[])


@pytest.mark.parametrize("rows", [1, 50_000])
def test_read_as_of_returns_what_history_has(
    db: Database, migrated_url: str, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(sample_columns, "PAGE_ROWS", rows)
    for number, clock in enumerate(("10:03", "10:05:00.25", "10:20")):  # restated twice; the last value is current
        table = "sample_revisions" if number < 2 else "samples"
        ts = "09:00"
        db.sample(*CROWD, "A", ts, number / 8, table=table, revision=number, received_at=at(clock), source="backfill")
    moments = ("10:05:59.999999", "10:06", "10:08:00.25", "10:23", "10:02:01.5")
    for moment in map(at, moments):
        found = ingestor.read(migrated_url, "crowd-sentiment", as_of=moment).to_pylist()
        names = list(found[0])
        expected = [
            row
            for row in db.read(views.history, *names, "known_until", feed="crowd-sentiment")
            if row[names.index("known_from")] <= moment and (row[-1] is None or row[-1] > moment)
        ]
        assert sorted(tuple(row.values()) for row in found) == [row[:-1] for row in expected]
        assert names == [
            "feed",
            "metric",
            "ticker",
            "user_id",
            "ts",
            "value",
            "known_from",
            "source",
            "instance_id",
            "seq",
        ]
    values = [
        ingestor.read(migrated_url, "crowd-sentiment", end=at("10:00"), as_of=at(moment))["value"].to_pylist()
        for moment in moments
    ]
    assert values == [[], [0.0], [0.125], [0.25], []]


def test_read_opens_in_polars_with_utc(db: Database, migrated_url: str) -> None:
    frame = polars.from_arrow(ingestor.read(migrated_url, "crowd-sentiment"))
    assert isinstance(frame, polars.DataFrame)
    assert frame.schema["ts"] == polars.Datetime("us", "UTC")
    assert frame.filter(polars.col("ts") == at("10:02"))["ticker"].to_list() == ["A", "B"]


@pytest.mark.parametrize("value", [datetime(2024, 3, 10, 10), date(2024, 3, 10), "2024-03-10"])  # noqa: DTZ001
@pytest.mark.parametrize("name", ["start", "end", "as_of"])
def test_read_refuses_time_without_zone(migrated_url: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*: pass a datetime with a time zone"):
        ingestor.read(migrated_url, "crowd-sentiment", **{name: value})


def test_read_names_similar_feed_ticker_and_column(db: Database, migrated_url: str) -> None:
    with pytest.raises(UnknownName, match='unknown feed "crowd_sentiment"; did you mean "crowd-sentiment"'):
        ingestor.read(migrated_url, "crowd_sentiment")
    with pytest.raises(UnknownName, match=r'unknown ticker "D" of crowd-sentiment; write one of A, B$'):
        ingestor.read(migrated_url, "crowd-sentiment", tickers=["A", "D"])
    with pytest.raises(UnknownName, match='unknown column "values"; did you mean "value"'):
        ingestor.read(migrated_url, "crowd-sentiment", columns=["values"])


def test_read_raises_one_error_for_a_database_that_is_missing_or_misspelled() -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        ingestor.read("sqlite:////nowhere/ingestor.db", "crowd-sentiment")
    with pytest.raises(ValueError, match="is not a database URL"):
        ingestor.read("ingestor.db", "crowd-sentiment")


def test_batches_are_bounded_and_of_one_snapshot(
    db: Database, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_columns, "PAGE_ROWS", 3)
    reader = ingestor.read_batches(migrated_url, "crowd-sentiment", columns=["ticker", "ts"])
    batches = [reader.read_next_batch(), reader.read_next_batch()]
    db.sample(*CROWD, "A", "10:09", 0.5)
    db.sample(*CROWD, "B", "10:09", 0.5)
    batches += list(reader)
    assert max(batch.num_rows for batch in batches) == 3
    expected = [(ticker, minute) for ticker in "AB" for minute in range(5)]
    assert keys(pyarrow.Table.from_batches(batches)) == expected


@pytest.mark.parametrize("migrated_url", ["postgres"], indirect=True)  # SQLite has no list of transactions
@pytest.mark.postgres
def test_dropped_reader_ends_its_transaction(db: Database, migrated_url: str) -> None:
    reader = ingestor.read_batches(migrated_url, "crowd-sentiment")
    reader.read_next_batch()
    reader.read_next_batch()
    assert open_transactions(db) == 1
    del reader
    gc.collect()
    assert open_transactions(db) == 0


def open_transactions(db: Database) -> Any:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%%'"
    with db.engine.connect() as connection:
        return connection.exec_driver_sql(query).scalar()


def test_read_without_pyarrow_names_the_extra(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "ingestor.store.read.arrow_table", raising=False)
    monkeypatch.delattr("ingestor.store.read.arrow_table", raising=False)
    with pytest.raises(MissingExtra, match=r"-m pip install.*pyarrow"):
        ingestor.read(migrated_url, "crowd-sentiment")


def test_importing_ingestor_loads_no_library() -> None:
    code = "import sys, ingestor; print({'sqlalchemy', 'pyarrow', 'pydantic'} & set(sys.modules)); ingestor.read"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "set()\n")
