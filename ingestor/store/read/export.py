"""Observations by series and time, a page after the other, in one snapshot. Of any feed, however many there are."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, func, select, tuple_

from ingestor.store import schema, views
from ingestor.store.engine import repeatable_read, translate_errors

PAGE_ROWS = 10_000
SERIES_PER_QUERY = 1_000
COLUMNS = tuple(column.name for column in views.observations.columns)

ExportRow: TypeAlias = tuple[Any, ...]  # in the order of COLUMNS; times are aware, UTC

_NAMES = tuple(schema.series.c[name] for name in COLUMNS if name in schema.series.c)
_VALUES = tuple(schema.samples.c[name] for name in COLUMNS if name not in schema.series.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """Which observations: of a feed, of these tickers or of all, with ``since <= ts < until``."""

    feed: str
    tickers: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def _series(self) -> list[ColumnElement[bool]]:
        c = schema.series.c
        return [c.feed == self.feed, *([c.ticker.in_(self.tickers)] if self.tickers else [])]

    def _times(self) -> list[ColumnElement[bool]]:
        ts = schema.samples.c.ts
        since = [ts >= self.since] if self.since else []
        return since + ([ts < self.until] if self.until else [])


def list_feeds(engine: Engine) -> list[str]:
    """Those of which there are series. Raises DatabaseUnavailable."""
    c = schema.series.c
    with translate_errors(), engine.connect() as connection:
        return list(connection.execute(select(c.feed).distinct().order_by(c.feed)).scalars())


def count_series(engine: Engine, wanted: ExportQuery) -> int:
    """How many have to be looked at. Raises DatabaseUnavailable."""
    with translate_errors(), engine.connect() as connection:
        count: int = connection.execute(select(func.count()).where(*wanted._series())).scalar_one()
    return count


def read_pages(engine: Engine, wanted: ExportQuery) -> Generator[tuple[int, list[ExportRow]]]:
    """(series that are done with it, observations) until there are no more, at most ``PAGE_ROWS`` at once.

    Ordered by metric, ticker, user_id and ts, all as it was at one moment, while the daemon goes on. Raises
    DatabaseUnavailable.
    """
    done = 0
    with repeatable_read(engine) as connection:
        for series in _all_series(connection, wanted):
            for values in _pages_of(connection, series.series_id, wanted):
                yield done, [(*series[1:], *row) for row in values]
            done += 1
            yield done, []


def _all_series(connection: Connection, wanted: ExportQuery) -> Iterator[Row[Any]]:
    c = schema.series.c
    order = (c.metric, c.ticker, c.user_id)
    query = select(c.series_id, *_NAMES).where(*wanted._series()).order_by(*order).limit(SERIES_PER_QUERY)
    page = connection.execute(query).all()
    while page:
        yield from page
        last = page[-1]
        page = connection.execute(query.where(tuple_(*order) > (last.metric, last.ticker, last.user_id))).all()


def _pages_of(connection: Connection, series_id: int, wanted: ExportQuery) -> Iterator[list[Row[Any]]]:
    c = schema.samples.c
    query: Select[Any] = select(*_VALUES).where(c.series_id == series_id, *wanted._times())
    query = query.order_by(c.ts).limit(PAGE_ROWS)
    page = list(connection.execute(query).all())
    while page:
        yield page
        page = list(connection.execute(query.where(c.ts > page[-1].ts)).all()) if len(page) == PAGE_ROWS else []
