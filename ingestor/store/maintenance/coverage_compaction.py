"""Compact old coverage: replace adjacent covered rows of a subscription by one row, and leave uncovered rows alone.

A row is covered if the intervals in which any instance was live, and the finished repairs, together contain it
(after the clock was set back, only live intervals that no other of their instance contradicts, as in the views):

    instance 1, before   |live        |disconnected|live    |silent|live   |    5 rows
    instance 2, before          |live   |                                       not changed: nothing to merge
    finished repairs                   |repair|
    covered              |##################################|      |#######|    the union of these
    instance 1, after    |live                              |silent|live   |    3 rows

Neither the covered time nor any gap with its states changes, so views report the same before and after. Two facts are
lost: which instance was live, and that a repaired gap existed (``repairs`` still has it).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby, takewhile
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, bindparam, case, delete, func, select, tuple_, update

from ingestor.store import schema

TimeInterval: TypeAlias = tuple[datetime, datetime]
_Row: TypeAlias = Any  # a row of ``coverage``


class CoverageKey(NamedTuple):
    """Primary key of ``coverage``."""

    subscription_id: int
    instance_id: int
    start_seq: int


START = CoverageKey(0, 0, 0)


class CoverageRun(NamedTuple):
    """Adjacent covered rows of one subscription and instance, to be replaced by one row."""

    first: CoverageKey
    last: CoverageKey
    ended_at: datetime


def compact(connection: Connection, start: CoverageKey, before: datetime, rows: int) -> tuple[int, CoverageKey | None]:
    """Compact what ended before ``before`` among the next ``rows`` rows, beginning with ``start``.

    Returns the number of rows read, and the ``start`` of the next call; None at the end of the table.
    """
    c = schema.coverage.c
    key = (c.subscription_id, c.instance_id, c.start_seq)
    # One more row than requested: the first one may be the result of compacting the previous page.
    query = select(schema.coverage).where(tuple_(*key) >= tuple_(*start)).order_by(*key).limit(rows + 1)
    page = connection.execute(query).all()
    histories = [
        list(takewhile(lambda row: row.ended_at is not None and row.ended_at < before, history))
        for _, history in groupby(page, attrgetter("subscription_id", "instance_id"))
    ]
    covered = _load_covered(connection, [history for history in histories if len(history) > 1])
    runs: list[CoverageRun] = []
    for history in filter(None, histories):
        runs += covered_runs(history, covered.get(history[0].subscription_id, ()))
    _replace(connection, [run for run in runs if run.first != run.last])
    return len(page), _next_start(page[-1], histories[-1], runs) if len(page) > rows else None


def _next_start(last: _Row, history: Sequence[_Row], runs: Sequence[CoverageRun]) -> CoverageKey:
    key = _key(last)
    if not history or history[-1] is not last:
        return CoverageKey(key.subscription_id, key.instance_id + 1, 0)  # later rows of this instance are newer still
    return runs[-1].first if runs and runs[-1].last == key else key


def covered_runs(history: Iterable[_Row], covered: Sequence[TimeInterval]) -> list[CoverageRun]:
    """Group the rows that ``covered`` contains into runs. A gap in time and an uncovered row end a run."""
    runs: list[CoverageRun] = []
    in_run = False
    for row in history:
        is_covered = _is_covered(row, covered)
        if is_covered and in_run and runs[-1].ended_at == row.started_at:
            runs[-1] = runs[-1]._replace(last=_key(row), ended_at=row.ended_at)
        elif is_covered:
            runs.append(CoverageRun(_key(row), _key(row), row.ended_at))
        in_run = is_covered
    return runs


def _key(row: _Row) -> CoverageKey:
    return CoverageKey(row.subscription_id, row.instance_id, row.start_seq)


def _is_covered(row: _Row, covered: Sequence[TimeInterval]) -> bool:
    # A `lost` row is never replaced, even if it was repaired: `audit` reports it.
    if row.state == "lost":
        return False
    following = bisect_right(covered, row.started_at, key=itemgetter(0))
    return following > 0 and bool(row.ended_at <= covered[following - 1][1])


def _load_covered(connection: Connection, histories: Sequence[Sequence[_Row]]) -> dict[int, list[TimeInterval]]:
    """Return subscription_id → covered intervals, sorted and disjoint, in the time of ``histories``.

    Open live intervals are excluded: they may end earlier than it seems now.
    """
    if not histories:
        return {}
    c, r, i = schema.coverage.c, schema.repairs.c, schema.instances.c
    ids = {history[0].subscription_id for history in histories}
    rows = [row for history in histories for row in history]  # not in the order of time, if a clock was set back
    start, end = min(row.started_at for row in rows), max(row.ended_at for row in rows)
    live = (
        select(c.subscription_id, c.instance_id, c.started_at, c.ended_at, i.heartbeat_at)
        .outerjoin(schema.instances, i.instance_id == c.instance_id)
        .where(c.subscription_id.in_(ids), c.state == "live", c.ended_at >= start, c.started_at <= end)
    )
    repaired = select(r.subscription_id, r.from_ts, r.to_ts).where(
        r.subscription_id.in_(ids), r.state == "done", r.to_ts >= start, r.from_ts <= end
    )
    contradictions = _load_contradictions(connection, ids, end)
    intervals: dict[int, list[TimeInterval]] = defaultdict(list)
    for subscription_id, instance_id, from_at, to_at, heartbeat_at in connection.execute(live):
        interval = (from_at, min(to_at, heartbeat_at or to_at))
        cuts = contradictions.get((subscription_id, instance_id), ())
        intervals[subscription_id] += subtract_intervals(interval, cuts)
    for subscription_id, from_at, to_at in connection.execute(repaired):
        intervals[subscription_id].append((from_at, to_at))
    return {subscription_id: merge_intervals(group) for subscription_id, group in intervals.items()}


def _load_contradictions(
    connection: Connection, ids: Collection[int], end: datetime
) -> dict[tuple[int, int], list[TimeInterval]]:
    """Return (subscription_id, instance_id) → when it was not live, for instances whose clock was set back."""
    c, i = schema.coverage.c, schema.instances.c
    ended_at = func.coalesce(c.ended_at, case((c.state != "stopped", end), else_=i.heartbeat_at), c.started_at)
    query = (
        select(c.subscription_id, c.instance_id, c.started_at, ended_at)
        .join(schema.instances, i.instance_id == c.instance_id)
        .where(i.stepped_back, c.subscription_id.in_(ids), c.state != "live", c.started_at <= end)
    )
    contradictions: dict[tuple[int, int], list[TimeInterval]] = defaultdict(list)
    for subscription_id, instance_id, from_at, to_at in connection.execute(query):
        contradictions[subscription_id, instance_id].append((from_at, to_at))
    return {key: merge_intervals(group) for key, group in contradictions.items()}


def merge_intervals(intervals: Iterable[TimeInterval]) -> list[TimeInterval]:
    """Return the union of ``intervals`` as sorted, disjoint intervals."""
    merged: list[TimeInterval] = []
    for from_at, to_at in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if merged and from_at <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], to_at))
        else:
            merged.append((from_at, to_at))
    return merged


def subtract_intervals(interval: TimeInterval, cuts: Iterable[TimeInterval]) -> Iterator[TimeInterval]:
    """Yield what is left of an interval without ``cuts``, which are sorted and disjoint."""
    from_at, end = interval
    for cut_from, cut_to in cuts:
        if cut_to > from_at:
            yield from_at, min(cut_from, end)
            from_at = cut_to
    yield from_at, end


def _replace(connection: Connection, runs: Sequence[CoverageRun]) -> None:
    """Extend the first row of each run to the end of the run, and delete the others."""
    if not runs:
        return
    c = schema.coverage.c
    history = (c.subscription_id == bindparam("subscription"), c.instance_id == bindparam("instance"))
    others = delete(schema.coverage).where(*history, c.start_seq > bindparam("first"), c.start_seq <= bindparam("last"))
    first = update(schema.coverage).where(*history, c.start_seq == bindparam("first"))
    first = first.values(state="live", reason="", ended_at=bindparam("end"))
    keys = [dict(zip(("subscription", "instance", "first"), run.first, strict=True)) for run in runs]
    connection.execute(others, [key | {"last": run.last.start_seq} for key, run in zip(keys, runs, strict=True)])
    connection.execute(first, [key | {"end": run.ended_at} for key, run in zip(keys, runs, strict=True)])
