"""Run the queries of the README and the pages on both databases, and compare their rows with what is said there."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DatabaseError

import ingestor
from ingestor.store.engine import make_engine

from ..integration.store.row_factory import DAY, Database, at
from ..support.query_plans import full_scans

TOP = Path(__file__).parents[2]
PAGES = "".join(page.read_text() for page in [TOP / "README.md", *sorted(TOP.glob("docs/*.md"))])
PYTHON = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
RECIPES = set(re.findall(r"```sql\n-- ([^.?:\n]+)[^\n]*\n(.*?)```", PAGES, re.DOTALL))  # some are on two pages
ROLE = "PostgreSQL, once, as the role that the daemon connects as"
CROWD = ("crowd-sentiment", "crowd_sentiment")
THEN = datetime(2026, 11, 2, tzinfo=DAY.tzinfo)

# The first sentence of a recipe → its rows; times as shown by a clock.
FOUND: dict[str, list[tuple[Any, ...]]] = {
    "The last hour of a ticker": [("14:30", 0.5), ("14:01", 0.4), ("14:00", 0.3), ("13:59", 0.1)],
    "The newest value of each ticker": [("AAPL", "14:30", 0.5), ("ON", "14:00", -0.5)],
    "Was it observed": [(True,)],
    "And if not": [("ON", "14:10", "14:20", "disconnected", "the server closed")],
    "Is this hour complete": [("AAPL", 3, 100.0, True), ("ON", 1, pytest.approx(250 / 3), True)],
    "The mean of a day, by coverage": [("AAPL", pytest.approx(0.25)), ("ON", -0.5)],
    "What did we know at 14": [("13:59", 0.1, "14:00"), ("14:00", 0.2, "14:01"), ("14:01", 0.4, "14:02")],
    "All values received for one minute, in the order in which they came": [
        (0.2, "14:01", "stream", "replaced"),
        (0.3, "14:06", "stream", "current"),
    ],
    "Two feeds side by side": [("14:00", 0.3, 7.0), ("14:01", 0.4, None), ("14:30", 0.5, None)],
    "How long after its ts does a value arrive, by the way that it came": [
        ("backfill", 1, 30_600.0, 30_600.0),
        ("stream", 4, 135.0, 360.0),
    ],
    "How dependable is each host": [("host1", 1, 600.0, 0.0)],
    "How was a minute restated": [(0.2, "14:01", "14:06", "stream"), (0.3, "14:06", None, "stream")],
}
CURSOR = "Where would a reader that knows everything continue"
KNOWN = [
    ("AAPL", "14:01", "14:00", 0.2),
    ("ON", "14:05", "14:00", -0.5),
    ("AAPL", "14:07", "14:01", 0.4),
    ("ON", "14:30", None, None),
]
# The same for recipes of one database.
FOUND_IN: dict[str, dict[str, list[tuple[Any, ...]]]] = {
    "postgresql": {
        "In PostgreSQL, what did we know at 14": [("13:59", 0.1), ("14:00", 0.2), ("14:01", 0.4)],
        "In PostgreSQL, what was known at many moments": KNOWN,
        "In PostgreSQL, what is new since a cursor": [
            ("revision", "AAPL", "13:59", 0.05, "stream"),
            ("current", "AAPL", "13:59", 0.1, "stream"),
            ("revision", "AAPL", "14:00", 0.2, "stream"),
            ("current", "ON", "14:00", -0.5, "stream"),
            ("current", "AAPL", "14:01", 0.4, "stream"),
            ("current", "AAPL", "14:00", 0.3, "stream"),
            ("current", "AAPL", "14:30", 0.5, "backfill"),
        ],
        "In PostgreSQL, the last hour of a ticker without sorting its past": FOUND["The last hour of a ticker"],
    },
    "sqlite": {"In SQLite, what was known at many moments": KNOWN},
}


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    fill(Database(engine))
    yield engine
    engine.dispose()


def fill(db: Database) -> None:
    """Fill a day: AAPL is always covered, ON misses ten minutes. A value is restated, one is backfilled at night."""
    db.instance(1, when("23:00"), name="host1", position=1_000)
    for subscription_id, ticker in ((1, "AAPL"), (2, "ON")):
        db.subscription(subscription_id, ticker)
    db.state(1, 1, "live", when("00:00"), None)
    db.state(2, 1, "live", when("00:00"), when("14:10"))
    db.state(2, 1, "disconnected", when("14:10"), when("14:20"), "the server closed")
    db.state(2, 1, "live", when("14:20"), None)
    for ticker, ts, value, received, more in (
        ("AAPL", "13:59", 0.05, "13:59:30", {"table": "sample_revisions"}),
        ("AAPL", "13:59", 0.1, "14:00", {"revision": 1}),
        ("AAPL", "14:00", 0.2, "14:01", {"table": "sample_revisions"}),
        ("AAPL", "14:00", 0.3, "14:06", {"revision": 1}),
        ("AAPL", "14:01", 0.4, "14:02", {}),
        ("AAPL", "14:30", 0.5, "23:00", {"source": "backfill"}),
        ("ON", "14:00", -0.5, "14:01", {}),
    ):
        db.sample(*CROWD, ticker, when(ts), value, received_at=at(when(received)), **more)
    db.sample("tweet-volume", "volume", "AAPL", when("14:00"), 7.0)


def when(clock: str) -> str:
    """A database with the day that the README describes."""
    return f"{(THEN - DAY).days} {clock}"


def rows_of(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    """Run a query through a plain driver; times become clock times."""
    if engine.dialect.name == "postgresql":
        url = str(engine.url).replace("+psycopg", "")
        with psycopg.connect(url, options="-c timezone=America/New_York") as connection:
            connection.execute("SET TIME ZONE 'UTC';")  # as the README says
            return [plain(row) for row in connection.execute(query)]
    with closing(sqlite3.connect(str(engine.url.database))) as database:
        return [plain(row) for row in database.execute(query)]


def plain(row: Sequence[Any]) -> tuple[Any, ...]:
    def clock_time(value: Any) -> Any:
        if isinstance(value, datetime):
            return f"{value:%H:%M}"
        return value[11:16] if isinstance(value, str) and value.startswith("2026-11-02 ") else value

    return tuple(clock_time(value) for value in row)


def test_every_documented_recipe_has_an_expected_result() -> None:
    assert sorted(question for question, _ in RECIPES) == sorted([*FOUND, *chain(*FOUND_IN.values()), CURSOR, ROLE])


@pytest.mark.parametrize("question", FOUND)
def test_recipe_returns_expected_rows(engine: Engine, question: str) -> None:
    query = dict(RECIPES)[question]
    assert rows_of(engine, query) == FOUND[question]
    assert full_scans(engine, (query, {}), "samples", "m", "sample_revisions") == []


def test_recipe_for_one_database_returns_expected_rows(engine: Engine) -> None:
    for question, rows in FOUND_IN[engine.dialect.name].items():
        query = dict(RECIPES)[question]
        assert rows_of(engine, query) == rows, question
        assert full_scans(engine, (query, {}), "samples", "m", "sample_revisions") == []


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_example_of_aware_time_in_sqlite_returns_rows_from_then_on(engine: Engine) -> None:
    (example,) = re.findall(r"```python\n(import sqlite3\n.*?)```", PAGES, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("/var/lib/ingestor/ingestor.db", str(engine.url.database)), names)
    assert list(map(plain, names["rows"])) == [("14:00", 0.3), ("14:01", 0.4), ("14:30", 0.5)]
    names["database"].close()


def test_cursor_recipe_continues_where_all_is_known(engine: Engine) -> None:
    ((cursor,),) = rows_of(engine, dict(RECIPES)[CURSOR])
    url = engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    assert json.loads(cursor) == {"positions": {"spool-1": 1_000}, "deleted": None}
    assert ingestor.changes(url, cursor) == ([], cursor)
    rows, later = ingestor.changes(url)
    assert (len(rows), json.loads(later)) == (8, json.loads(cursor))
    (example,) = re.findall(r"```python\n(import ingestor\n.*?)```", PAGES, re.DOTALL)
    names = {"cursor": ""}
    exec(example.replace("sqlite:////var/lib/ingestor/ingestor.db", url), names)
    assert (names["rows"], names["cursor"]) == (rows, later)
    assert "from ingestor.store.read.changes import SQLITE" in PAGES


def test_not_observed_recipe_returns_gaps(engine: Engine) -> None:
    query = dict(RECIPES)["Was it observed"]
    assert rows_of(engine, query.replace("AAPL", "ON")) == [(False,)]
    assert rows_of(engine, query.replace("AAPL", "NONE")) == [(False,)]


@pytest.mark.postgres
@pytest.mark.parametrize("migrated_url", ["postgres"], indirect=True)
def test_analyst_role_reads_all_tables_and_writes_none(engine: Engine) -> None:
    owner = str(engine.url).replace("+psycopg", "")
    analyst = owner.replace("ingestor@", "analyst@")
    try:
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute(dict(RECIPES)[ROLE])
            connection.execute("CREATE VIEW later AS SELECT 1 AS one")
        with psycopg.connect(analyst, autocommit=True) as connection:
            assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
            for view in ("crowd_sentiment_hourly", "gaps", "latest", "payloads", "later"):
                connection.execute(f"SELECT * FROM {view}")
            for question, rows in FOUND_IN["postgresql"].items():  # the functions
                assert [plain(row) for row in connection.execute(dict(RECIPES)[question])] == rows
            for statement in (
                "DELETE FROM samples",
                "UPDATE instances SET position = 0",
                "CREATE TABLE mine (one int)",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
    finally:
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute("DROP OWNED BY analyst; DROP ROLE analyst")


def test_arrow_example_reads_what_the_view_has(engine: Engine) -> None:
    (example,) = [block for block in PYTHON if "ingestor.read" in block]
    url = engine.url.render_as_string(hide_password=False)
    example = example.replace("sqlite:////var/lib/ingestor/ingestor.db", url)
    names: dict[str, Any] = {}
    exec(example, names)
    query = "SELECT ts, ticker, value FROM observations WHERE feed = 'crowd-sentiment' AND ticker IN ('AAPL', 'ON')"
    with engine.connect() as connection:
        expected = connection.execute(text(f"SELECT count(*), sum(value) FROM ({query}) q")).one()
    minutes = names["minutes"]
    assert [*minutes.columns] == ["ts", "ticker", "value"]
    assert (len(minutes), minutes["value"].sum()) == pytest.approx(tuple(expected))
    assert len(minutes) > 0


def test_pandas_example_reads_without_writing(engine: Engine) -> None:
    (example,) = [block for block in PYTHON if "read_sql" in block]
    assert "`postgresql+psycopg://analyst@host/name`" in PAGES
    if engine.dialect.name == "sqlite":
        example = example.replace("/var/lib/ingestor/ingestor.db", str(engine.url.database))
    else:
        url = engine.url.render_as_string(hide_password=False)
        example = re.sub(r'create_engine\(".*?"\)', f'create_engine("{url}")', example)
    names: dict[str, Any] = {}
    exec(example, names)
    assert str(names["minutes"]["ts"].dt.tz) == "UTC"
    assert names["table"].count().to_dict() == {"AAPL": 4}
    if engine.dialect.name == "sqlite":
        with names["engine"].connect() as reader, pytest.raises(DatabaseError, match="readonly"):
            reader.execute(text("DELETE FROM samples"))
    names["engine"].dispose()
