"""Turn transitions into coverage intervals. One per subscription and instance is open; a closed one never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select, update

from ingestor.core.times import to_datetime, to_optional_datetime, to_us
from ingestor.store.schema import coverage
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


class CoverageTimeline:
    """The open intervals of one instance, and those that the transitions of a batch close and open."""

    def __init__(self, open_intervals: Sequence[CoverageInterval]) -> None:
        self._open = {interval.subscription_id: interval for interval in open_intervals}
        self.changed_intervals: list[CoverageInterval] = []

    def apply(self, transition: Transition, ids: Mapping[SubscriptionRow, int]) -> None:
        """Close and open intervals without overlap or hole. A repeated state extends its interval."""
        listed = [ids[subscription] for subscription in transition.subscriptions]
        if transition.others:
            affected = [subscription_id for subscription_id in self._open if subscription_id not in set(listed)]
        else:
            affected = listed or [key for key, interval in self._open.items() if interval.state != "stopped"]
        for subscription_id in affected:
            self._change_state(subscription_id, transition)

    def close_all(self, at_us: int) -> None:
        """Close all open intervals without opening others: this instance has ended."""
        for interval in self._open.values():
            interval.ended_us = max(at_us, interval.started_us)

    def _change_state(self, subscription_id: int, transition: Transition) -> None:
        started_us = transition.since_us
        previous = self._open.get(subscription_id)
        if previous is not None:
            if previous.state == transition.state:
                return
            # If the clock was set back, an interval must not end before it starts.
            started_us = previous.ended_us = max(started_us, previous.started_us)
            if previous.stored:
                self.changed_intervals.append(previous)
        interval = CoverageInterval(
            subscription_id=subscription_id,
            start_seq=transition.seq,
            started_us=started_us,
            state=transition.state,
            reason=transition.reason,
        )
        self._open[subscription_id] = interval
        self.changed_intervals.append(interval)


def load(connection: Connection, instance_id: int) -> CoverageTimeline:
    """Read the open intervals of an instance."""
    query = select(coverage).where(coverage.c.instance_id == instance_id, coverage.c.ended_at.is_(None))
    return CoverageTimeline(
        [
            CoverageInterval(
                subscription_id=row.subscription_id,
                start_seq=row.start_seq,
                started_us=to_us(row.started_at),
                state=row.state,
                reason=row.reason,
                stored=True,
            )
            for row in connection.execute(query)
        ]
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
