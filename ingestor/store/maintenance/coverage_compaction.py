"""Old coverage in as few rows as say the same: what was had becomes one row, what was missed stays as it is.

Had is what any instance listened to, or what was repaired, of the same subscription. Its time is the same before and
after, and so is that of every gap with its states: whatever the views and the candles say does not change. What is
forgotten is who listened, and that a gap was there before it was repaired (which ``repairs`` still knows).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, bindparam, delete, select, tuple_, union_all, update

from ingestor.store import schema

TimeRange: TypeAlias = tuple[datetime, datetime]
_Row: TypeAlias = Any  # of ``coverage``


class CoverageKey(NamedTuple):
    """Where a row of coverage stands."""

    subscription_id: int
    instance_id: int
    start_seq: int

    @property
    def next_history(self) -> CoverageKey:
        """Before the first row of the instance that follows in this subscription's rows."""
        return CoverageKey(self.subscription_id, self.instance_id + 1, 0)


START = CoverageKey(0, 0, 0)


class CoverageRun(NamedTuple):
    """Neighbouring rows of one subscription and instance, as the one that is to stand for them."""

    key: CoverageKey  # of the first
    last_seq: int  # start_seq of the last
    to_at: datetime

    @property
    def end(self) -> CoverageKey:
        """The last of its rows."""
        return self.key._replace(start_seq=self.last_seq)


def compact(connection: Connection, start: CoverageKey, before: datetime, rows: int) -> tuple[int, CoverageKey | None]:
    """Fold what ended before ``before`` among the ``rows`` that follow from ``start`` on.

    Returns how many were read, and where to go on; None at the end of the table.
    """
    c = schema.coverage.c
    key = (c.subscription_id, c.instance_id, c.start_seq)
    # One more than asked for: the first may be what the last page was folded to.
    query = select(schema.coverage).where(tuple_(*key) >= tuple_(*start)).order_by(*key).limit(rows + 1)
    page = connection.execute(query).all()
    histories = [_old(group, before) for _, group in groupby(page, lambda row: (row.subscription_id, row.instance_id))]
    had = _had(connection, [history for history in histories if len(history) > 1])
    found = [run for history in histories if history for run in covered_runs(history, had[history[0].subscription_id])]
    _replace(connection, [run for run in found if run.end != run.key])
    return len(page), _next(page[-1], histories[-1], found) if len(page) > rows else None


def _old(history: Iterable[_Row], before: datetime) -> list[_Row]:
    """The beginning of a history up to the first row that is open or younger."""
    old = []
    for row in history:
        if row.ended_at is None or row.ended_at >= before:
            break
        old.append(row)
    return old


def _next(last: _Row, history: Sequence[_Row], found: Sequence[CoverageRun]) -> CoverageKey:
    key = _key(last)
    if not history or history[-1] is not last:
        return key.next_history  # what follows of it is younger still
    return found[-1].key if found and found[-1].end == key else key


def covered_runs(history: Iterable[_Row], had: Sequence[TimeRange]) -> list[CoverageRun]:
    """Of rows in order those that were ``had``, as runs; where one does not touch the next, another run begins."""
    made: list[CoverageRun] = []
    follows = False
    for row in history:
        is_had = _is_had(row, had)
        if is_had and follows and made[-1].to_at == row.started_at:
            made[-1] = made[-1]._replace(last_seq=row.start_seq, to_at=row.ended_at)
        elif is_had:
            made.append(CoverageRun(_key(row), row.start_seq, row.ended_at))
        follows = is_had
    return made


def _key(row: _Row) -> CoverageKey:
    return CoverageKey(row.subscription_id, row.instance_id, row.start_seq)


def _is_had(row: _Row, had: Sequence[TimeRange]) -> bool:
    # What `lost` tells is more than a gap: `audit` speaks of it for ever.
    if row.state == "lost":
        return False
    place = bisect_right(had, row.started_at, key=itemgetter(0))
    return place > 0 and bool(row.ended_at <= had[place - 1][1])


def _had(connection: Connection, histories: Sequence[Sequence[_Row]]) -> Mapping[int, Sequence[TimeRange]]:
    """Subscription → the time that it has for good, as far as these rows reach: nothing open, which may end earlier."""
    spans: dict[int, list[TimeRange]] = defaultdict(list)
    if histories:
        ids = {history[0].subscription_id for history in histories}
        start = min(history[0].started_at for history in histories)
        end = max(history[-1].ended_at for history in histories)
        for subscription_id, from_at, to_at in _pieces(connection, ids, start, end):
            if from_at < to_at:  # a moment covers nothing of the gap around it
                spans[subscription_id].append((from_at, to_at))
    return defaultdict(tuple, {subscription_id: merge_intervals(pieces) for subscription_id, pieces in spans.items()})


def _pieces(connection: Connection, ids: Collection[int], start: datetime, end: datetime) -> Sequence[Any]:
    c, r = schema.coverage.c, schema.repairs.c
    listened = select(c.subscription_id, c.started_at, c.ended_at).where(
        c.subscription_id.in_(ids), c.state == "live", c.ended_at >= start, c.started_at <= end
    )
    repaired = select(r.subscription_id, r.from_ts, r.to_ts).where(
        r.subscription_id.in_(ids), r.state == "done", r.to_ts >= start, r.from_ts <= end
    )
    return connection.execute(union_all(listened, repaired)).all()


def merge_intervals(pieces: Iterable[TimeRange]) -> list[TimeRange]:
    """The same time in the fewest spans, in order."""
    spans: list[TimeRange] = []
    for from_at, to_at in sorted(pieces):
        if spans and from_at <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], to_at))
        else:
            spans.append((from_at, to_at))
    return spans


def _replace(connection: Connection, made: Sequence[CoverageRun]) -> None:
    if not made:
        return
    c = schema.coverage.c
    mine = (c.subscription_id == bindparam("subscription"), c.instance_id == bindparam("instance"))
    rest = delete(schema.coverage).where(*mine, c.start_seq > bindparam("first"), c.start_seq <= bindparam("last"))
    first = update(schema.coverage).where(*mine, c.start_seq == bindparam("first"))
    keys = [dict(zip(("subscription", "instance", "first"), run.key, strict=True)) for run in made]
    connection.execute(rest, [key | {"last": run.last_seq} for key, run in zip(keys, made, strict=True)])
    longer = first.values(state="live", reason="", ended_at=bindparam("end"))
    connection.execute(longer, [key | {"end": run.to_at} for key, run in zip(keys, made, strict=True)])
