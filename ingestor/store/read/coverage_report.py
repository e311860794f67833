"""Report for each subscription when it was wanted, when it was covered, and the gaps. Reads only views."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Select, TableClause, select

from ingestor.store import schema, views
from ingestor.store.engine import translate_errors


class TimeSpan(NamedTuple):
    """An interval of the daemon's clock, UTC."""

    from_at: datetime
    to_at: datetime


class CoverageGap(NamedTuple):
    """Wanted time that no instance covered and no repair has filled."""

    from_at: datetime
    to_at: datetime
    states: str  # coverage states during the gap
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionCoverage:
    """One subscription within the reported time."""

    subscription_id: int
    feed: str
    path: str
    params: str  # canonical JSON
    ticker: str
    wanted: TimeSpan | None  # None: not wanted within the reported time
    covered: tuple[TimeSpan, ...]
    gaps: tuple[CoverageGap, ...]

    @property
    def wanted_seconds(self) -> float:
        """Length of the wanted time."""
        return total_seconds([self.wanted]) if self.wanted else 0.0

    @property
    def covered_seconds(self) -> float:
        """How much of the wanted time was live or has been repaired."""
        return total_seconds(self.covered)


def total_seconds(spans: Iterable[TimeSpan | CoverageGap]) -> float:
    """Return the sum of the lengths of ``spans``."""
    return sum((span.to_at - span.from_at).total_seconds() for span in spans)


def load_coverage(engine: Engine, start: datetime, end: datetime, ticker: str = "") -> list[SubscriptionCoverage]:
    """Load the coverage of all subscriptions from ``start`` to ``end``, or of those that include ``ticker``.

    Raises DatabaseUnavailable.
    """
    with translate_errors(), engine.connect() as connection:
        subscriptions = connection.execute(_subscriptions(ticker)).all()
        wanted = _spans(connection, views.wanted, start, end)
        covered = _spans(connection, views.covered, start, end)
        gaps = _gaps(connection, start, end)
    return [
        SubscriptionCoverage(
            **row._mapping,
            wanted=next(iter(wanted[row.subscription_id]), None),
            covered=_intersect(wanted[row.subscription_id], covered[row.subscription_id]),
            gaps=tuple(gaps[row.subscription_id]),
        )
        for row in subscriptions
    ]


def _subscriptions(ticker: str) -> Select[Any]:
    c = schema.subscriptions.c
    query = select(c.subscription_id, c.feed, c.path, c.params, c.ticker).order_by(c.path, c.params)
    return query.where(c.ticker.in_((ticker, ""))) if ticker else query


def _spans(connection: Connection, view: TableClause, start: datetime, end: datetime) -> dict[int, list[TimeSpan]]:
    found: dict[int, list[TimeSpan]] = defaultdict(list)
    c = view.c
    query = select(c.subscription_id, c.from_at, c.to_at).where(c.from_at < end, c.to_at > start).order_by(c.from_at)
    for row in connection.execute(query):
        found[row.subscription_id].append(TimeSpan(max(row.from_at, start), min(row.to_at, end)))
    return found


def _gaps(connection: Connection, start: datetime, end: datetime) -> dict[int, list[CoverageGap]]:
    found: dict[int, list[CoverageGap]] = defaultdict(list)
    c = views.gaps.c
    query = select(views.gaps).where(c.from_at < end, c.to_at > start).order_by(c.from_at)
    for row in connection.execute(query):
        found[row.subscription_id].append(
            CoverageGap(max(row.from_at, start), min(row.to_at, end), row.states, row.reason)
        )
    return found


def _intersect(wanted: list[TimeSpan], covered: list[TimeSpan]) -> tuple[TimeSpan, ...]:
    """Return the covered part of the wanted time. Another instance may have covered more than was wanted here."""
    clipped = [TimeSpan(max(w.from_at, c.from_at), min(w.to_at, c.to_at)) for w in wanted for c in covered]
    return tuple(span for span in clipped if span.from_at < span.to_at)
