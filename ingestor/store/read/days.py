"""What the database has of each UTC day and feed, and whether that can still change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Date, Table, and_, cast, func, select

from ingestor.store import schema, views
from ingestor.store.read.export import ExportQuery, read_series

DAY = timedelta(days=1)
RESTATED = timedelta(hours=1)  # as long after its ts the provider may restate a value
# Gaps are searched once a minute, so that a gap in the hour after the day has its repair by then.
REPAIR_KNOWN = timedelta(hours=1.1)


@dataclass(frozen=True, slots=True)
class DayContent:
    """Changes with each value that is added or restated: a restatement and a late value count in ``revisions``."""

    rows: int
    revisions: int
    received_at: str  # the latest, in ISO 8601

    def to_text(self) -> str:
        return json.dumps(astuple(self))

    @classmethod
    def from_text(cls, text: str) -> DayContent:
        return cls(*json.loads(text))

    def merge(self, other: DayContent) -> DayContent:
        return DayContent(
            self.rows + other.rows, self.revisions + other.revisions, max(self.received_at, other.received_at)
        )


def day_start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def list_days(connection: Connection, query: ExportQuery) -> dict[tuple[str, date], DayContent]:
    """Return the content of each feed and day that has values, ordered by both."""
    days: dict[tuple[str, date], DayContent] = {}
    table = schema.sample_revisions if query.revisions else schema.samples
    for series in read_series(connection, query):  # a part at a time, to stay below the statement's timeout
        for feed, day, content in _days_of(connection, table, [row.series_id for row in series], query):
            known = days.get((feed, day))
            days[feed, day] = known.merge(content) if known else content
    return dict(sorted(days.items()))


def _days_of(
    connection: Connection, table: Table, series_ids: Sequence[int], query: ExportQuery
) -> list[tuple[str, date, DayContent]]:
    s, m = schema.series.c, table.c
    day: ColumnElement[Any] = func.substr(m.ts, 1, 10)
    if connection.dialect.name == "postgresql":
        day = cast(func.timezone("UTC", m.ts), Date)
    spans = [*([m.ts >= query.since] if query.since else []), *([m.ts < query.until] if query.until else [])]
    contents = (
        select(s.feed, day.label("day"), func.count(), func.sum(m.revision), func.max(m.received_at))
        .join_from(table, schema.series, s.series_id == m.series_id)
        .where(m.series_id.in_(series_ids), *spans)
        .group_by(s.feed, day)
    )
    return [
        (feed, date.fromisoformat(str(day)), DayContent(rows, revisions, received_at.isoformat()))
        for feed, day, rows, revisions, received_at in connection.execute(contents)
    ]


def deleted_before(connection: Connection) -> datetime | None:
    """Return up to which ts retention has begun to delete samples."""
    before: datetime | None = connection.execute(select(func.max(schema.deletions.c.before))).scalar()
    return before


def is_final(connection: Connection, feed: str, day: date) -> bool:
    """Return whether no value of this feed and day is expected any more.

    Everything that was received up to an hour after the day is in the database, no repair that may change the day is
    open, and the time just after that hour was live, or is in a gap whose repair has ended, or was not wanted.
    """
    end = day_start(day) + DAY
    heartbeat = connection.execute(select(func.max(schema.instances.c.heartbeat_at))).scalar()
    if heartbeat is None or heartbeat < end + RESTATED or _has_open_repair(connection, feed, day):
        return False
    return _is_accounted_for(connection, feed, end + REPAIR_KNOWN)


def _has_open_repair(connection: Connection, feed: str, day: date) -> bool:
    # A repair requests values from one hour before its gap on.
    r, end = schema.repairs.c, day_start(day) + DAY + RESTATED
    return _exists(connection, feed, r.subscription_id, r.state == "open", r.from_ts < end, r.to_ts > day_start(day))


def _is_accounted_for(connection: Connection, feed: str, at: datetime) -> bool:
    i, r, c = views.coverage_intervals.c, schema.repairs.c, schema.coverage.c
    wanted = and_(c.ended_at.is_(None), c.state != "stopped")
    return (
        _exists(connection, feed, i.subscription_id, i.state == "live", i.from_at <= at, i.to_at >= at)
        or _exists(connection, feed, r.subscription_id, r.state != "open", r.from_ts <= at, r.to_ts >= at)
        or not _exists(connection, feed, c.subscription_id, wanted)
        or not _exists(connection, feed, c.subscription_id, c.started_at <= at)
    )


def _exists(connection: Connection, feed: str, subscription_id: Any, *conditions: ColumnElement[bool]) -> bool:
    s = schema.subscriptions.c
    query = select(subscription_id).where(s.subscription_id == subscription_id, s.feed == feed, *conditions).limit(1)
    return connection.execute(query).first() is not None
