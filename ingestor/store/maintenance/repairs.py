"""Table ``repairs``: which gaps need a repair, the data that proves a repair complete, and its state.

Reading may use an engine of its own. The instance that has the lease writes, in the writer's thread, because a SQLite
database has a single connection that writes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine, Select, and_, bindparam, case, func, or_, select, update

from ingestor.core.entries import connection_params
from ingestor.store import leases, schema, views
from ingestor.store.engine import fetch_all, insert_or_ignore, translate_errors
from ingestor.store.read.payloads import read_payloads
from ingestor.store.write.payload_blocks import StoredPayload

LEASE = "repair"
LEASE_TIME = timedelta(minutes=5)  # longer than the provider takes to respond; renewed before each request

RepairKind = Literal["window", "snapshot", "historical", "manual"]
RepairState: TypeAlias = Literal["open", "done", "failed"]

# Snapshots come first: the provider's rolling window moves past the gap.
_URGENCY = {"snapshot": 0, "manual": 1, "historical": 2}


class Gap(NamedTuple):
    """A time in which a subscription was not covered."""

    subscription_id: int
    from_ts: datetime
    to_ts: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A row of ``repairs`` with the names of its subscription."""

    repair_id: int
    subscription_id: int
    feed: str
    path: str
    params: str  # canonical JSON
    ticker: str
    from_ts: datetime
    to_ts: datetime
    kind: RepairKind
    state: RepairState
    cursor: str
    attempts: int
    new_rows: int
    error: str
    created_at: datetime

    @property
    def parsed_params(self) -> dict[str, str]:
        """The subscription's params."""
        params: dict[str, str] = json.loads(self.params)
        return params

    @property
    def user_id(self) -> str:
        """The user that the subscription is limited to; empty for all."""
        return self.parsed_params.get("user_id", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillRequest:
    """A range that an operator requests. Its subscription need not be in the config."""

    path: str
    method: str
    params: str  # canonical JSON
    feed: str
    ticker: str
    from_ts: datetime
    to_ts: datetime


class ResumedRepair(NamedTuple):
    """A repair whose subscription is live again, and the entry after which the provider's responses follow."""

    repair: Repair
    instance_id: int
    seq: int


class SampleRange(NamedTuple):
    """The lowest and highest ts of some samples."""

    first: datetime
    last: datetime


# Which repairs there are


def find_gaps(engine: Engine, limit: int) -> list[Gap]:
    """Return gaps that have ended and have no repair yet, the oldest first. Reads all of coverage.

    A gap at the end of the wanted time has ended if no instance wants the subscription any more, or if it is live again
    and nothing was heard yet that would count as covered. A gap inside a repair has one: the backlog of another
    instance may have split a gap that was longer before.
    """
    gaps, wanted, r = views.gaps.c, views.wanted.c, schema.repairs.c
    has_repair = (
        select(r.repair_id)
        .where(r.subscription_id == gaps.subscription_id, r.from_ts <= gaps.from_at, r.to_ts >= gaps.to_at)
        .where(or_(r.kind != "manual", r.state != "failed"))
    )
    c = schema.coverage.c
    is_open = (c.subscription_id == gaps.subscription_id, c.ended_at.is_(None))
    still_wanted = select(c.subscription_id).where(*is_open, c.state != "stopped")
    live_again = select(c.subscription_id).where(*is_open, c.state == "live", c.started_at == gaps.to_at)
    query = (
        select(gaps.subscription_id, gaps.from_at, gaps.to_at)
        .join(views.wanted, wanted.subscription_id == gaps.subscription_id)
        .where(or_(gaps.to_at < wanted.to_at, ~still_wanted.exists(), live_again.exists()), ~has_repair.exists())
        .order_by(gaps.from_at)
        .limit(limit)
    )
    return [Gap(*row) for row in fetch_all(engine, query)]


def resumed_repairs(engine: Engine, limit: int) -> tuple[list[ResumedRepair], list[Repair]]:
    """Return open repairs of kind ``window``: those followed by live coverage, and those that are not."""
    c, r = schema.coverage.c, schema.repairs.c
    previous = schema.coverage.alias()
    # Responses may arrive as soon as the subscription was requested, which is before the fact that it is live.
    requested_seq = (
        select(func.max(previous.c.start_seq))
        .where(previous.c.subscription_id == c.subscription_id, previous.c.instance_id == c.instance_id)
        .where(previous.c.start_seq < c.start_seq)
        .scalar_subquery()
    )
    live_again = and_(c.subscription_id == r.subscription_id, c.state == "live", c.started_at == r.to_ts)
    query = (
        _select_repairs(c.instance_id, func.coalesce(requested_seq, c.start_seq).label("seq"))
        .outerjoin(schema.coverage, live_again)
        .where(r.state == "open", r.kind == "window")
        .order_by(r.repair_id)
        .limit(limit)
    )
    rows = fetch_all(engine, query)
    resumed = [ResumedRepair(_repair(row), row.instance_id, row.seq) for row in rows if row.instance_id is not None]
    return resumed, [_repair(row) for row in rows if row.instance_id is None]


def due_repairs(engine: Engine, midnight: datetime) -> Generator[Repair]:
    """Yield open repairs that need a request, the most urgent first; historical ones if they end by ``midnight``.

    Holds a connection until the generator is closed. There is no limit, so that repairs which wait for a retry do not
    hide those behind them; nearly always the caller takes the first one.
    """
    r = schema.repairs.c
    is_due = or_(r.kind.in_(("snapshot", "manual")), and_(r.kind == "historical", r.to_ts <= midnight))
    urgency = case(_URGENCY, value=r.kind, else_=9)
    query = _select_repairs().where(r.state == "open", is_due)
    query = query.order_by(urgency, r.attempts, r.from_ts, r.repair_id).execution_options(yield_per=100)
    with translate_errors(), engine.connect() as connection, connection.execute(query) as rows:
        yield from map(_repair, rows)


def repairs_inside(engine: Engine, repair: Repair, end: datetime) -> list[Repair]:
    """Return other open repairs of the same feed and params with gaps between the start of this one and ``end``."""
    r, s = schema.repairs.c, schema.subscriptions.c
    query = _select_repairs().where(r.state == "open", r.from_ts >= repair.from_ts, r.to_ts <= end)
    query = query.where(r.repair_id != repair.repair_id, s.feed == repair.feed, s.params == repair.params)
    return [_repair(row) for row in fetch_all(engine, query.limit(1000))]


def load_repairs(engine: Engine, repair_ids: Sequence[int]) -> list[Repair]:
    """Return repairs by id, whatever their state."""
    query = _select_repairs().where(schema.repairs.c.repair_id.in_(repair_ids)).order_by(schema.repairs.c.repair_id)
    return [_repair(row) for row in fetch_all(engine, query)]


def unfinished_repairs(engine: Engine, ticker: str = "") -> list[Repair]:
    """Return repairs that are open, or have failed and are still not covered: of one ticker, or (empty) of all.

    The newest come first, at most 1000.
    """
    r, s, c = schema.repairs.c, schema.subscriptions.c, views.covered.c
    contains = and_(c.subscription_id == r.subscription_id, c.from_at <= r.from_ts, c.to_at >= r.to_ts)
    # Not correlated: else the view would be computed for each repair.
    covered = select(r.repair_id).join_from(schema.repairs, views.covered, contains).where(r.state == "failed")
    uncovered = and_(r.state == "failed", r.repair_id.not_in(covered.correlate(None)))
    query = _select_repairs().where(or_(r.state == "open", uncovered))
    query = query.order_by(r.to_ts.desc(), r.repair_id).limit(1000)
    if ticker:
        query = query.where(s.ticker.in_((ticker, "")))
    return [_repair(row) for row in fetch_all(engine, query)]


def _select_repairs(*columns: Any) -> Select[Any]:
    r, s = schema.repairs, schema.subscriptions
    names = (s.c.feed, s.c.path, s.c.params, s.c.ticker)
    return select(r, *names, *columns).join_from(r, s, s.c.subscription_id == r.c.subscription_id)


def _repair(row: Any) -> Repair:
    return Repair(**{name: getattr(row, name) for name in Repair.__dataclass_fields__})


# What proves a repair


def stream_payloads(
    engine: Engine, instance_id: int, seqs: range, since: datetime, paths: Collection[str]
) -> Iterator[StoredPayload]:
    """Yield payloads received from the socket for ``paths`` from ``since`` on, those of ``seqs``, in their order.

    Holds no connection while the caller works.
    """
    c = schema.payload_blocks.c
    conditions = (c.path.in_(sorted(paths)), c.source == "stream", since <= c.last_received_at)
    found = read_payloads(partial(fetch_all, engine), instance_id, seqs.start, seqs.stop - 1, *conditions)
    return (payload for payload in found if payload.received_at >= since)


def known_tickers(engine: Engine, feed: str, limit: int) -> list[str]:
    """Return the tickers of a feed that have samples or were ever subscribed to, in order."""
    n, s = schema.series.c, schema.subscriptions.c
    subscribed = select(s.ticker).where(s.feed == feed, s.ticker != "")
    query = select(n.ticker).where(n.feed == feed).union(subscribed).order_by("ticker").limit(limit)
    return [row.ticker for row in fetch_all(engine, query)]


def sample_range(
    engine: Engine, feed: str, ticker: str, user_id: str, start: datetime, end: datetime
) -> SampleRange | None:
    """Return the range of the samples with ``start`` <= ts < ``end``; None if there are none."""
    ts = schema.samples.c.ts
    query = _samples(feed, ticker, user_id, start, end).with_only_columns(func.min(ts), func.max(ts))
    ((first, last),) = fetch_all(engine, query)
    return None if first is None else SampleRange(first, last)


def count_new_rows(engine: Engine, repair: Repair, bucket: timedelta) -> int:
    """Count the samples in the gap that arrived since: from the stream, or by REST after the repair was created."""
    c = schema.samples.c
    # A gap also affects the bucket that it starts in. A requested range is taken as it is.
    start = repair.from_ts if repair.kind == "manual" else repair.from_ts - bucket
    query = _samples(repair.feed, repair.ticker, repair.user_id, start, repair.to_ts).with_only_columns(func.count())
    if repair.kind == "window":
        query = query.where(c.source == "stream", c.received_at >= repair.from_ts)
    else:
        query = query.where(c.source != "stream", c.received_at >= repair.created_at)
    ((count,),) = fetch_all(engine, query)
    return int(count)


def _samples(feed: str, ticker: str, user_id: str, start: datetime, end: datetime) -> Select[Any]:
    n, m = schema.series.c, schema.samples.c
    conditions = [n.feed == feed]
    conditions += [n.ticker == ticker] if ticker else []
    conditions += [n.user_id == user_id] if user_id else []
    ids = select(n.series_id).where(*conditions)
    return select(schema.samples).where(m.series_id.in_(ids), m.ts >= start, m.ts < end)


# State changes


class LeaseHeldElsewhere(Exception):
    """Another daemon repairs gaps in this database."""


class RepairTable:
    """Changes the table, in the writer's thread. Each call is one short transaction.

    Methods that take the ``instance_id`` of this daemon acquire or renew its lease. They raise LeaseHeldElsewhere if
    another instance has it, and DatabaseUnavailable.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acquire_lease(self, instance_id: int) -> None:
        """Acquire or renew the lease."""
        with self._leased(instance_id):
            pass

    def open(self, instance_id: int, gaps: Sequence[Gap], now: datetime) -> None:
        """Open a repair for each gap."""
        rows = [gap._asdict() | {"kind": "window", "state": "open", "created_at": now} for gap in gaps]
        with self._leased(instance_id) as connection:
            connection.execute(insert_or_ignore(connection, schema.repairs), rows)

    def change_kind(self, instance_id: int, repair_ids: Sequence[int], kind: RepairKind) -> None:
        """Start over with repairs in another way."""
        self._update(instance_id, repair_ids, kind=kind, cursor="", error="", attempts=0)

    def advance(self, instance_id: int, repair_id: int, cursor: str) -> None:
        """Record that everything up to ``cursor`` is committed."""
        self._update(instance_id, [repair_id], cursor=cursor, error="", attempts=0)

    def postpone(self, instance_id: int, repair_id: int, error: str) -> None:
        """Record a failed attempt. The repair stays open and is retried."""
        self._update(instance_id, [repair_id], error=error, attempts=schema.repairs.c.attempts + 1)

    def finish(self, instance_id: int, new_rows: dict[int, int], now: datetime) -> None:
        """Close repairs as done. ``new_rows``: repair_id → number of rows that it brought."""
        c = schema.repairs.c
        still_open = update(schema.repairs).where(c.repair_id == bindparam("id_"), c.state == "open")
        done = still_open.values(state="done", new_rows=bindparam("count_"), error="", finished_at=now)
        with self._leased(instance_id) as connection:
            connection.execute(done, [{"id_": id_, "count_": count} for id_, count in new_rows.items()])

    def fail(self, instance_id: int, repair_ids: Sequence[int], error: str, now: datetime) -> None:
        """Close repairs as failed, for the reason in ``error``."""
        self._update(instance_id, repair_ids, state="failed", error=error, finished_at=now)

    def request(self, requests: Sequence[BackfillRequest], now: datetime) -> list[int]:
        """Open a repair for each range that an operator requests, and return their ids.

        An existing repair of the same range is reused: a failed one starts over, an open one of another kind becomes
        manual, another open one is retried, and a finished one does not change. Needs no lease: the instance that has
        it does the work.
        """
        r = schema.repairs.c
        repair_ids = []
        with translate_errors(), self._engine.begin() as connection:
            for request in requests:
                gap = Gap(_subscription_id(connection, request, now), request.from_ts, request.to_ts)._asdict()
                new = {"kind": "manual", "state": "open", "created_at": now}
                connection.execute(insert_or_ignore(connection, schema.repairs), [gap | new])
                same_range = [r[name] == value for name, value in gap.items()]
                waits = and_(r.state == "open", r.kind != "manual")
                restart = update(schema.repairs).where(*same_range, or_(r.state == "failed", waits))
                restart = restart.values(new | {"cursor": "", "error": "", "attempts": 0, "finished_at": None})
                connection.execute(restart)
                retry = update(schema.repairs).where(*same_range, r.state == "open").values(error="", attempts=0)
                connection.execute(retry)
                repair_ids.append(connection.execute(select(r.repair_id).where(*same_range)).scalar_one())
        return repair_ids

    def _update(self, instance_id: int, repair_ids: Sequence[int], **values: Any) -> None:
        c = schema.repairs.c
        still_open = update(schema.repairs).where(c.repair_id.in_(repair_ids), c.state == "open")
        with self._leased(instance_id) as connection:
            connection.execute(still_open.values(values))

    @contextmanager
    def _leased(self, instance_id: int) -> Iterator[Connection]:
        with translate_errors(), self._engine.begin() as connection:
            if leases.acquire(connection, LEASE, instance_id, LEASE_TIME) is None:
                raise LeaseHeldElsewhere
            yield connection


def _subscription_id(connection: Connection, request: BackfillRequest, now: datetime) -> int:
    c = schema.subscriptions.c
    names = {name: getattr(request, name) for name in ("feed", "path", "method", "params", "ticker")}
    row = names | {"first_seen_at": now, "connection_params": connection_params(request.params)}
    connection.execute(insert_or_ignore(connection, schema.subscriptions), [row])
    query = select(c.subscription_id).where(c.path == request.path, c.params == request.params)
    return int(connection.execute(query).scalar_one())
