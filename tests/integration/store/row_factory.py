"""Insert handmade rows, with calls short enough to be read as a table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, TableClause, insert, select

from ingestor.store import schema

DAY = datetime(2024, 3, 10, tzinfo=UTC)


def at(clock: str) -> datetime:
    """Parse ``10:00``, ``10:00:30`` or ``10:00:30.5`` of DAY; ``+1 10:00`` of the next day, ``-1 10:00`` before."""
    days, _, clock = clock.rpartition(" ")
    hours, minutes, seconds = (*clock.split(":"), "0")[:3]
    return DAY + timedelta(days=int(days or 0), hours=int(hours), minutes=int(minutes), seconds=float(seconds))


def _after(seconds: float) -> datetime:
    return DAY + timedelta(seconds=seconds)


def single_payload(instance_id: int, seq: int, received_at: datetime, **columns: Any) -> dict[str, Any]:
    """Return a row of ``payload_blocks`` with one frame."""
    ends = {"first_seq": seq, "last_seq": seq, "received_at": received_at, "last_received_at": received_at}
    return {"instance_id": instance_id, "source": "stream", "frame_count": 1, **ends, **columns}


class Database:
    """Inserts rows, with defaults for the columns that a test does not care about."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._series: dict[tuple[str, ...], int] = {}
        self._seq = 0

    def read(self, view: TableClause, *columns: str, **where: Any) -> list[tuple[Any, ...]]:
        """Return the sorted rows of a view, with the given columns or all."""
        selected = [view.c[name] for name in columns] or list(view.c)
        query = select(*selected).where(*(view.c[name] == value for name, value in where.items()))
        with self.engine.connect() as connection:
            return sorted(tuple(row) for row in connection.execute(query.order_by(*selected)))

    def add(self, table: str, **columns: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(schema.metadata.tables[table]), columns)

    def instance(self, instance_id: int, heartbeat: str | None, **columns: Any) -> None:
        heartbeat_at = at(heartbeat) if heartbeat else None
        defaults = {"spool_id": f"spool-{instance_id}", "started_at": at("-1 00:00"), "heartbeat_at": heartbeat_at}
        self.add("instances", instance_id=instance_id, **(defaults | columns))

    def subscription(self, subscription_id: int, ticker: str = "", **columns: Any) -> None:
        params = f'{{"ticker":"{ticker}"}}' if ticker else "{}"
        defaults = {"feed": "crowd-sentiment", "path": "/real-time/crowd-sentiment", "method": "get", "params": params}
        row = defaults | {"ticker": ticker, "first_seen_at": at("00:00")} | columns
        self.add("subscriptions", subscription_id=subscription_id, **row)

    def state(
        self, subscription_id: int, instance_id: int, state: str, start: str, end: str | None, reason: str = ""
    ) -> None:
        """Insert a coverage interval, open without ``end``."""
        self.add(
            "coverage",
            subscription_id=subscription_id,
            instance_id=instance_id,
            start_seq=self._next_seq(),
            started_at=at(start),
            ended_at=at(end) if end else None,
            state=state,
            reason=reason,
        )

    def add_states(self, states: Iterable[tuple[int, int, str, float, float]]) -> None:
        """Insert many coverage intervals: subscription, instance, state, and seconds after the start of DAY."""
        names = ("subscription_id", "instance_id", "state")
        rows = [
            dict(zip(names, names_, strict=True))
            | {"start_seq": self._next_seq(), "started_at": _after(start), "ended_at": _after(end)}
            for *names_, start, end in states
        ]
        with self.engine.begin() as connection:
            connection.execute(insert(schema.coverage), rows)

    def repair(self, subscription_id: int, start: str, end: str, state: str = "done") -> None:
        defaults = {"kind": "historical", "state": state, "created_at": at("12:00")}
        self.add("repairs", subscription_id=subscription_id, from_ts=at(start), to_ts=at(end), **defaults)

    def sample(
        self, feed: str, metric: str, ticker: str, ts: str, value: float, user_id: str = "", **columns: Any
    ) -> None:
        """Insert a current value, or with ``table="sample_revisions"`` a revision."""
        table = columns.pop("table", "samples")
        series_id = self._series_id((feed, metric, ticker, user_id))
        defaults = {"received_at": at(ts), "seq": self._next_seq(), "instance_id": 1, "source": "stream"}
        self.add(table, series_id=series_id, ts=at(ts), value=value, **(defaults | columns))

    def _series_id(self, key: tuple[str, ...]) -> int:
        if key not in self._series:
            self._series[key] = len(self._series) + 1
            names = dict(zip(("feed", "metric", "ticker", "user_id"), key, strict=True))
            self.add("series", series_id=self._series[key], first_seen_at=at("00:00"), **names)
        return self._series[key]

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq
