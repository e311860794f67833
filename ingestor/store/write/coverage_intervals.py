"""Intervals of coverage from transitions. One is open per subscription and instance; it is closed once and for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select, update

from ingestor.core.times import to_datetime, to_optional_datetime, to_us
from ingestor.store.schema import coverage
from ingestor.store.write.batch import SubscriptionRow, Transition


@dataclass(slots=True, kw_only=True)
class CoverageInterval:
    """A subscription in one state. Stamps are µs since the epoch, UTC."""

    subscription_id: int
    start_seq: int
    started_us: int
    state: str
    reason: str
    ended_us: int | None = None
    stored: bool = False  # its row exists: closing it is an update


class CoverageTimeline:
    """The open intervals of one instance, and what a batch's transitions make of them."""

    def __init__(self, open_intervals: Sequence[CoverageInterval]) -> None:
        self._open = {interval.subscription_id: interval for interval in open_intervals}
        self.changed_intervals: list[CoverageInterval] = []

    def apply(self, transition: Transition, ids: Mapping[SubscriptionRow, int]) -> None:
        """Close and open intervals without overlap or hole; a state repeated extends its interval."""
        named = [ids[subscription] for subscription in transition.subscriptions]
        if transition.others:
            named = [subscription_id for subscription_id in self._open if subscription_id not in set(named)]
        elif not named:
            named = self._not_stopped()
        for subscription_id in named:
            self._enter(subscription_id, transition)

    def close_all(self, at_us: int) -> None:
        """Close what is open, with nothing to follow: this instance says no more."""
        for interval in self._open.values():
            interval.ended_us = max(at_us, interval.started_us)

    def _not_stopped(self) -> list[int]:
        return [key for key, interval in self._open.items() if interval.state != "stopped"]

    def _enter(self, subscription_id: int, transition: Transition) -> None:
        started_us = transition.since_us
        before = self._open.get(subscription_id)
        if before is not None:
            if before.state == transition.state:
                return
            # A clock that was set back must not make an interval end before it began.
            started_us = before.ended_us = max(started_us, before.started_us)
            if before.stored:
                self.changed_intervals.append(before)
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
    closed = [
        {"id_": i.subscription_id, "seq_": i.start_seq, "ended_at": to_optional_datetime(i.ended_us)}
        for i in timeline.changed_intervals
        if i.stored
    ]
    opened = [_columns(instance_id, interval) for interval in timeline.changed_intervals if not interval.stored]
    c = coverage.c
    if closed:
        key = (c.subscription_id == bindparam("id_"), c.instance_id == instance_id, c.start_seq == bindparam("seq_"))
        connection.execute(update(coverage).where(*key), closed)
    if opened:
        connection.execute(insert(coverage), opened)


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
