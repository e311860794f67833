"""Times as parameters: what SQLite makes of each form silently, and that `datetime()` protects from it."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Any

import pandas
import pytest
from sqlalchemy import DateTime, Engine, bindparam, text

from tests.support.query_plans import full_scans

from .row_factory import Database, at

pytestmark = [
    pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True),
    pytest.mark.filterwarnings("ignore:The default datetime adapter:DeprecationWarning"),
]
CROWD = ("crowd-sentiment", "crowd_sentiment")
MINUTES = ["09:30", "13:59", "14:00", "14:01", "23:00"]
FROM_TWO = MINUTES[2:]
NEW_YORK = timezone(timedelta(hours=-5))
START = at("14:00")
QUERY = "SELECT ts FROM crowd_sentiment WHERE ticker = 'ON' AND ts >= {} ORDER BY ts"
# The parameter → the rows that a comparison with it gives.
FORMS: list[tuple[Any, list[str]]] = [
    ("2024-03-10 14:00:00", FROM_TWO),
    (START.replace(tzinfo=None), FROM_TWO),
    (START, MINUTES[3:]),
    (START.astimezone(NEW_YORK), MINUTES),
    (START.isoformat(), []),
    (START.astimezone(NEW_YORK).isoformat(), []),
    ("2024-03-10T14:00:00Z", []),
    ("2024-03-10 14:00:00Z", MINUTES[3:]),
]


@pytest.fixture
def db(engine: Engine) -> Database:
    db = Database(engine)
    for minute in MINUTES:
        db.sample(*CROWD, "ON", minute, 0.5)
    return db


def clock_times(db: Database, query: Any, start: Any) -> list[str]:
    with db.engine.connect() as connection:
        return [ts[11:16] for ts in connection.execute(query, {"start": start}).scalars()]


@pytest.mark.parametrize(("start", "rows"), FORMS, ids=[f"{type(form).__name__} {form}" for form, _ in FORMS])
def test_datetime_protects_from_other_forms_of_a_time(db: Database, start: Any, rows: list[str]) -> None:
    assert clock_times(db, text(QUERY.format(":start")), start) == rows
    assert clock_times(db, text(QUERY.format("datetime(:start)")), start) == FROM_TWO


def test_type_of_sqlalchemy_cuts_off_the_zone(db: Database) -> None:
    query = text(QUERY.format(":start")).bindparams(bindparam("start", type_=DateTime()))
    assert clock_times(db, query, START.astimezone(NEW_YORK)) == MINUTES


def test_pandas_timestamp_is_an_error_of_the_driver(db: Database) -> None:
    start = pandas.Timestamp(START).tz_convert("America/New_York")
    assert clock_times(db, text(QUERY.format("datetime(:start)")), start.isoformat()) == FROM_TWO
    with pytest.raises(Exception, match="type 'Timestamp' is not supported"):
        clock_times(db, text(QUERY.format(":start")), start)


def test_datetime_of_a_parameter_leaves_the_index_in_use(engine: Engine) -> None:
    query = QUERY.format("datetime('2024-03-10T14:00:00Z')")
    assert full_scans(engine, (query, {}), "m") == []
    with engine.connect() as connection:
        steps = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]
    assert "SEARCH m USING PRIMARY KEY (series_id=? AND ts>?)" in steps
