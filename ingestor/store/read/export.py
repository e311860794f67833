"""Read the observations of a feed page by page, ordered by series and time, in one snapshot."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Engine, Row, func, select, tuple_

from ingestor.store import schema, views
from ingestor.store.engine import fetch_all, repeatable_read

PAGE_ROWS = 10_000
SERIES_PER_QUERY = 1_000
COLUMNS = tuple(column.name for column in views.observations.columns)

ExportRow: TypeAlias = tuple[Any, ...]  # in the order of COLUMNS; times are aware, UTC

_NAMES = tuple(schema.series.c[name] for name in COLUMNS if name in schema.series.c)
_VALUES = tuple(schema.samples.c[name] for name in COLUMNS if name not in schema.series.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """Selects the observations of a feed with ``since <= ts < until``, of some tickers or (none given) of all."""

    feed: str
    tickers: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def series_conditions(self) -> list[ColumnElement[bool]]:
        c = schema.series.c
        return [c.feed == self.feed, *([c.ticker.in_(self.tickers)] if self.tickers else [])]

    def time_conditions(self) -> list[ColumnElement[bool]]:
        ts = schema.samples.c.ts
        since = [ts >= self.since] if self.since else []
        until = [ts < self.until] if self.until else []
        return since + until


def list_feeds(engine: Engine) -> list[str]:
    """List the feeds that have series. Raises DatabaseUnavailable."""
    c = schema.series.c
    return [row.feed for row in fetch_all(engine, select(c.feed).distinct().order_by(c.feed))]


def count_series(engine: Engine, query: ExportQuery) -> int:
    """Count the series that ``query`` selects. Raises DatabaseUnavailable."""
    ((count,),) = fetch_all(engine, select(func.count()).where(*query.series_conditions()))
    return int(count)


def read_pages(engine: Engine, query: ExportQuery) -> Generator[tuple[int, list[ExportRow]]]:
    """Yield (number of completed series, at most ``PAGE_ROWS`` observations), from one snapshot of the database.

    The observations are ordered by metric, ticker, user_id and ts. Raises DatabaseUnavailable.
    """
    done = 0
    with repeatable_read(engine) as connection:
        for series in _read_series(connection, query):
            for page in _read_samples(connection, series.series_id, query):
                yield done, [(*series[1:], *row) for row in page]
            done += 1
            yield done, []


def _read_series(connection: Connection, query: ExportQuery) -> Iterator[Row[Any]]:
    c = schema.series.c
    order = (c.metric, c.ticker, c.user_id)
    series = select(c.series_id, *_NAMES).where(*query.series_conditions()).order_by(*order).limit(SERIES_PER_QUERY)
    page = connection.execute(series).all()
    while page:
        yield from page
        last = page[-1]
        page = connection.execute(series.where(tuple_(*order) > (last.metric, last.ticker, last.user_id))).all()


def _read_samples(connection: Connection, series_id: int, query: ExportQuery) -> Iterator[Sequence[Row[Any]]]:
    c = schema.samples.c
    samples = select(*_VALUES).where(c.series_id == series_id, *query.time_conditions())
    samples = samples.order_by(c.ts).limit(PAGE_ROWS)
    page = connection.execute(samples).all()
    while page:
        yield page
        page = connection.execute(samples.where(c.ts > page[-1].ts)).all() if len(page) == PAGE_ROWS else []
