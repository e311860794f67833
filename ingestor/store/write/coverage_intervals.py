"""Turn transitions into coverage intervals. One per subscription and instance is open; a closed one never changes.

Intervals of a subscription and instance follow each other without overlap, until the clock is set. Then they end by the
old clock, and others begin by the new one: later, and what lies between is in no interval, or earlier, and they
overlap. Views then count no time as live in which any of them says that it was not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, bindparam, case, delete, insert, select, update

from ingestor.core.entries import GroupKey
from ingestor.core.times import to_datetime, to_optional_datetime, to_us
from ingestor.store.schema import coverage, instances, repairs, subscriptions
from ingestor.store.write.batch import SubscriptionRow, Transition


@dataclass(slots=True, kw_only=True)
class CoverageInterval:
    """A subscription in one state. Times are µs since the epoch, UTC."""

    subscription_id: int
    start_seq: int
    started_us: int
    state: str
    reason: str
    ended_us: int | None = None
    stored: bool = False  # its row exists, so that closing it is an UPDATE
    group: GroupKey = ("", "")  # path and params of the connection


class CoverageTimeline:
    """The open intervals of one instance, and those that the transitions of a batch close and open."""

    def __init__(self, open_intervals: Sequence[CoverageInterval], not_before_us: int | None = None) -> None:
        """No subscription's first interval starts before ``not_before_us``."""
        self._not_before_us = not_before_us
        self._open = {interval.subscription_id: interval for interval in open_intervals}
        self.changed_intervals: list[CoverageInterval] = []
        self.stepped_back_to_us: int | None = None  # the clock was set to an earlier time than intervals have

    def apply(self, transition: Transition, ids: Mapping[SubscriptionRow, int]) -> None:
        """Close and open intervals without overlap or hole. A repeated state extends its interval."""
        if transition.until_us is not None:
            for interval in list(self._open.values()):
                self._restart(interval, transition, transition.until_us)
            return
        groups = {ids[row]: (row.path, row.connection_params) for row in transition.subscriptions}
        for subscription_id in self._affected(transition, groups):
            self._change_state(subscription_id, transition, groups.get(subscription_id))

    def _affected(self, transition: Transition, listed: Collection[int]) -> Iterable[int]:
        if transition.others:
            return [subscription_id for subscription_id in self._open if subscription_id not in listed]
        wanted = [(key, interval.group) for key, interval in self._open.items() if interval.state != "stopped"]
        return listed or [key for key, group in wanted if transition.group in (None, group)]

    def close_all(self, at_us: int) -> None:
        """Close all open intervals without opening others: this instance has ended."""
        for interval in self._open.values():
            interval.ended_us = max(at_us, interval.started_us)

    def _restart(self, previous: CoverageInterval, transition: Transition, until_us: int) -> None:
        """Let a state go on by a clock that was set."""
        until_us = max(until_us, previous.started_us)
        if transition.since_us < until_us:
            self.stepped_back_to_us = transition.since_us
        self._close(previous, until_us)
        self._begin(previous, transition.seq, transition.since_us)

    def _change_state(self, subscription_id: int, transition: Transition, group: GroupKey | None) -> None:
        started_us = transition.since_us
        previous = self._open.get(subscription_id)
        if previous is not None:
            if previous.state == transition.state:
                return
            # A connection on which nothing more came was live for no time.
            started_us = max(started_us, previous.started_us)
            self._close(previous, started_us)
            group = group or previous.group
        elif self._not_before_us is not None:
            started_us = max(started_us, self._not_before_us)
        interval = CoverageInterval(
            subscription_id=subscription_id,
            start_seq=transition.seq,
            started_us=started_us,
            state=transition.state,
            reason=transition.reason,
            group=group or ("", ""),
        )
        self._begin(interval, transition.seq, started_us)

    def _close(self, interval: CoverageInterval, ended_us: int) -> None:
        interval.ended_us = ended_us
        if interval.stored:
            self.changed_intervals.append(interval)

    def _begin(self, like: CoverageInterval, seq: int, started_us: int) -> None:
        interval = replace(like, start_seq=seq, started_us=started_us, ended_us=None, stored=False)
        self._open[interval.subscription_id] = interval
        self.changed_intervals.append(interval)


def load(connection: Connection, instance_id: int, not_before_us: int | None = None) -> CoverageTimeline:
    """Read the open intervals of an instance."""
    s = subscriptions.c
    query = (
        select(coverage, s.path, s.connection_params)
        .outerjoin(subscriptions, s.subscription_id == coverage.c.subscription_id)
        .where(coverage.c.instance_id == instance_id, coverage.c.ended_at.is_(None))
    )
    return CoverageTimeline(
        [
            CoverageInterval(
                subscription_id=row.subscription_id,
                start_seq=row.start_seq,
                started_us=to_us(row.started_at),
                state=row.state,
                reason=row.reason,
                stored=True,
                group=(row.path, row.connection_params),
            )
            for row in connection.execute(query)
        ],
        not_before_us,
    )


def save(connection: Connection, instance_id: int, timeline: CoverageTimeline) -> None:
    """Update the intervals that were closed, and insert the new ones."""
    closed = [
        {"id_": i.subscription_id, "seq_": i.start_seq, "ended_at": to_optional_datetime(i.ended_us)}
        for i in timeline.changed_intervals
        if i.stored
    ]
    new = [_columns(instance_id, interval) for interval in timeline.changed_intervals if not interval.stored]
    c = coverage.c
    if closed:
        key = (c.subscription_id == bindparam("id_"), c.instance_id == instance_id, c.start_seq == bindparam("seq_"))
        connection.execute(update(coverage).where(*key), closed)
    if new:
        connection.execute(insert(coverage), new)
    if timeline.stepped_back_to_us is not None:
        _note_step_back(connection, instance_id, timeline.stepped_back_to_us)


def _note_step_back(connection: Connection, instance_id: int, to_us: int) -> None:
    heartbeat_at, to_at = instances.c.heartbeat_at, to_datetime(to_us)
    mark = update(instances).where(instances.c.instance_id == instance_id)
    # The heartbeat of the old clock would claim what has not come yet; the first one of the new clock follows.
    connection.execute(
        mark.values(stepped_back=True, heartbeat_at=case((heartbeat_at > to_at, to_at), else_=heartbeat_at))
    )
    # They would cover time that has not come yet. Where a gap remains, another repair is opened for it.
    r, own = repairs.c, select(coverage.c.subscription_id).where(coverage.c.instance_id == instance_id)
    connection.execute(delete(repairs).where(r.to_ts > to_at, r.kind != "manual", r.subscription_id.in_(own)))


def _columns(instance_id: int, interval: CoverageInterval) -> dict[str, object]:
    return {
        "subscription_id": interval.subscription_id,
        "instance_id": instance_id,
        "start_seq": interval.start_seq,
        "started_at": to_datetime(interval.started_us),
        "ended_at": to_optional_datetime(interval.ended_us),
        "state": interval.state,
        "reason": interval.reason,
    }
