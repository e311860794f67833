"""Read observations page by page, as columns, ordered by feed, metric, ticker, user_id and ts, in one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, func, select, tuple_, union

from ingestor.config.validation_errors import suggest
from ingestor.errors import UnknownName
from ingestor.store import schema, views
from ingestor.store.engine import fetch_all
from ingestor.store.read import sample_columns
from ingestor.store.read.sample_columns import Columns

SERIES_PER_QUERY = 1_000
COLUMNS = tuple(column.name for column in views.observations.columns)
NAMES = tuple(name for name in COLUMNS if name in schema.series.c)

SeriesNames: TypeAlias = tuple[str, ...]  # in the order of NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """Selects values with ``since <= ts < until`` of some feeds, and of some tickers or (none given) of all.

    ``revisions`` selects the values that are not current, in place of those that are; ``as_of`` those that were known
    at a moment, which have ``known_from`` as ``received_at``, no revision and no ``published_at``.
    """

    feeds: tuple[str, ...]
    tickers: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    revisions: bool = False
    as_of: datetime | None = None

    def series_conditions(self) -> list[ColumnElement[bool]]:
        c = schema.series.c
        return [c.feed.in_(self.feeds), *([c.ticker.in_(self.tickers)] if self.tickers else [])]


@dataclass(frozen=True, slots=True)
class Page:
    """Values as columns. Column ``series`` has, for each row, an index into the list of names."""

    names: Sequence[SeriesNames]
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns["ts"])


def list_feeds(engine: Engine) -> list[str]:
    """List the feeds that have series. Raises DatabaseUnavailable."""
    c = schema.series.c
    return [row.feed for row in fetch_all(engine, select(c.feed).distinct().order_by(c.feed))]


def check_names(engine: Engine, query: ExportQuery, documented_feeds: Iterable[str] = ()) -> None:
    """Raise UnknownName for a feed or ticker that is neither stored nor subscribed to; the message has similar ones.

    A feed may also be a documented one. Raises DatabaseUnavailable.
    """
    for feed in query.feeds:
        known = sorted({*_known(engine, "feed"), *documented_feeds})
        if feed not in known:
            raise UnknownName(f'unknown feed "{feed}"{suggest(feed, known)}')
    tickers = _known(engine, "ticker", query.feeds) if query.tickers else []
    for ticker in query.tickers:
        if ticker not in tickers:
            similar = suggest(ticker, tickers) or "; the database has none yet"
            raise UnknownName(f'unknown ticker "{ticker}" of {", ".join(query.feeds)}{similar}')


def _known(engine: Engine, column: str, feeds: Sequence[str] | None = None) -> list[str]:
    queries: list[Select[Any]] = []
    for table in (schema.series, schema.subscriptions):
        conditions = [] if feeds is None else [table.c.feed.in_(feeds)]
        queries.append(select(table.c[column].label("name")).where(table.c[column] != "", *conditions))
    return sorted(row.name for row in fetch_all(engine, union(*queries)))


def count_series(engine: Engine, query: ExportQuery) -> int:
    """Count the series that ``query`` selects. Raises DatabaseUnavailable."""
    ((count,),) = fetch_all(engine, select(func.count()).where(*query.series_conditions()))
    return int(count)


def read_pages(connection: Connection, query: ExportQuery) -> Iterator[tuple[int, Page]]:
    """Yield (number of series begun, page). A page has at most ``sample_columns.PAGE_ROWS`` rows.

    ``connection``: of ``repeatable_read``, so that all pages are from one snapshot.
    """
    done = 0
    is_postgres = connection.dialect.name == "postgresql"
    read: Callable[..., Iterator[Columns]] = sample_columns.read_postgres if is_postgres else sample_columns.read_sqlite
    source = schema.sample_revisions.name if query.revisions else schema.samples.name
    if query.as_of:
        source = sample_columns.known_values(query.as_of, is_postgres=is_postgres)
    for series in read_series(connection, query):
        names: list[SeriesNames] = [tuple(row[1:]) for row in series]
        for columns in read(connection, source, [row.series_id for row in series], query.since, query.until):
            yield done + columns["series"][-1] + 1, Page(names, columns)
        done += len(series)


def read_series(connection: Connection, query: ExportQuery) -> Iterator[Sequence[Row[Any]]]:
    """Yield the series of a query, at most ``SERIES_PER_QUERY`` at a time: series_id, and NAMES."""
    names = [schema.series.c[name] for name in NAMES]
    series = select(schema.series.c.series_id, *names).where(*query.series_conditions()).order_by(*names)
    series = series.limit(SERIES_PER_QUERY)
    page = connection.execute(series).all()
    while page:
        yield page
        page = connection.execute(series.where(tuple_(*names) > tuple(page[-1][1:]))).all()
