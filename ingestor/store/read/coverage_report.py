"""Report for each subscription when it was wanted, when it was covered, and the gaps: of all instances together, and
of each by itself. Reads only views."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, TableClause, select

from ingestor.store import schema, views
from ingestor.store.engine import fetch_all, translate_errors


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


class InstanceGap(NamedTuple):
    """Time in which an instance by itself did not receive a subscription, within the reported time."""

    instance_id: int
    instance_name: str
    subscription_id: int
    from_at: datetime
    to_at: datetime
    states: str
    reason: str
    covered_seconds: float = 0.0  # by another instance, another path or a repair


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


def total_seconds(spans: Iterable[TimeSpan | CoverageGap | InstanceGap]) -> float:
    """Return the sum of the lengths of ``spans``."""
    return sum((span.to_at - span.from_at).total_seconds() for span in spans)


def load_coverage(engine: Engine, start: datetime, end: datetime, ticker: str = "") -> list[SubscriptionCoverage]:
    """Load the coverage of all subscriptions from ``start`` to ``end``, or of those that include ``ticker``.

    Raises DatabaseUnavailable.
    """
    c = schema.subscriptions.c
    query = select(c.subscription_id, c.feed, c.path, c.params, c.ticker).order_by(c.path, c.params)
    if ticker:
        query = query.where(c.ticker.in_((ticker, "")))
    with translate_errors(), engine.connect() as connection:
        subscriptions = connection.execute(query).all()
        wanted = _clip(connection, views.wanted, start, end)
        covered = _clip(connection, views.covered, start, end)
        gaps = _clip(connection, views.gaps, start, end, "states", "reason")
    return [
        SubscriptionCoverage(
            **row._mapping,
            wanted=next((TimeSpan(*span) for span in wanted[row.subscription_id]), None),
            covered=_intersect(wanted[row.subscription_id], covered[row.subscription_id]),
            gaps=tuple(CoverageGap(*gap) for gap in gaps[row.subscription_id]),
        )
        for row in subscriptions
    ]


def load_instance_gaps(
    engine: Engine, start: datetime, end: datetime, subscriptions: Iterable[SubscriptionCoverage]
) -> list[InstanceGap]:
    """Load what each instance by itself did not receive of the ``subscriptions``, which ``load_coverage`` has returned.

    In the order of time. Raises DatabaseUnavailable.
    """
    c = views.instance_gaps.c
    query = select(c.instance_id, c.instance_name, c.subscription_id, c.from_at, c.to_at, c.states, c.reason)
    query = query.where(c.from_at < end, c.to_at > start).order_by(c.from_at, c.instance_id, c.subscription_id)
    uncovered = {subscription.subscription_id: subscription.gaps for subscription in subscriptions}
    gaps = (InstanceGap(*row) for row in fetch_all(engine, query) if row.subscription_id in uncovered)
    clipped = (gap._replace(from_at=max(gap.from_at, start), to_at=min(gap.to_at, end)) for gap in gaps)
    return [_measure(gap, uncovered[gap.subscription_id]) for gap in clipped]


def _measure(gap: InstanceGap, uncovered: Sequence[CoverageGap]) -> InstanceGap:
    first = bisect_right(uncovered, gap.from_at, key=attrgetter("to_at"))
    overlaps = takewhile(lambda hole: hole.from_at < gap.to_at, uncovered[first:])
    holes = [TimeSpan(max(hole.from_at, gap.from_at), min(hole.to_at, gap.to_at)) for hole in overlaps]
    return gap._replace(covered_seconds=total_seconds([gap]) - total_seconds(holes))


def _clip(
    connection: Connection, view: TableClause, start: datetime, end: datetime, *columns: str
) -> dict[int, list[tuple[Any, ...]]]:
    """Return subscription_id → the view's intervals (from_at, to_at, *columns), cut to ``start`` and ``end``."""
    clipped: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    c = view.c
    query = select(c.subscription_id, c.from_at, c.to_at, *(c[name] for name in columns))
    query = query.where(c.from_at < end, c.to_at > start).order_by(c.from_at)
    for subscription_id, from_at, to_at, *values in connection.execute(query):
        clipped[subscription_id].append((max(from_at, start), min(to_at, end), *values))
    return clipped


def _intersect(wanted: list[tuple[Any, ...]], covered: list[tuple[Any, ...]]) -> tuple[TimeSpan, ...]:
    """Return the covered part of the wanted time. Another instance may have covered more than was wanted here."""
    spans = (TimeSpan(max(w[0], c[0]), min(w[1], c[1])) for w in wanted for c in covered)
    return tuple(span for span in spans if span.from_at < span.to_at)
