"""Repairs of gaps: which are needed, what they are proven by, and what became of each.

Whoever reads may have an engine of its own. What is written, is so by the one who has the lease, in the writer's
thread: a SQLite database has one connection that writes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine, Select, and_, bindparam, case, func, or_, select, update

from ingestor.store import leases, schema, views
from ingestor.store.engine import insert_or_ignore, translate_errors

LEASE = "healing"
LEASE_TIME = timedelta(minutes=5)  # longer than an answer takes; renewed before each question

RepairKind = Literal["window", "snapshot", "historical", "manual"]
RepairState: TypeAlias = Literal["open", "done", "failed"]

DUE_AT_ONCE = 100  # fetched together; nearly always the first one is taken

_FIRST = {"snapshot": 0, "manual": 1, "historical": 2}  # a rolling window waits for nobody


class Gap(NamedTuple):
    """A time in which a subscription was not listened to."""

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
        """The user asked for; empty for all."""
        return self.parsed_params.get("user_id", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillRequest:
    """A range that a person asks for. Its subscription need not be wanted by the config."""

    path: str
    method: str
    params: str  # canonical JSON
    feed: str
    ticker: str
    from_ts: datetime
    to_ts: datetime


class ResumedRepair(NamedTuple):
    """Where the answers are that came when a subscription was live again after its gap."""

    repair: Repair
    instance_id: int
    seq: int  # they follow it


class SampleRange(NamedTuple):
    """Of which ts the first and last of some samples are."""

    first: datetime
    last: datetime


class StoredPayload(NamedTuple):
    """A payload, as far as it is needed to read it again."""

    seq: int
    received_at: datetime
    event: str
    path: str
    params: str
    body: str


# What is to be repaired


def find_gaps(engine: Engine, limit: int) -> list[Gap]:
    """Gaps that are over and that no repair names yet, the oldest first. Reads all of coverage.

    One at the end of the wanted time is over if nobody wants it any more. A gap inside a repair is named by it: another
    instance's backlog may have told of a time in the midst of it.
    """
    gaps, wanted, r = views.gaps.c, views.wanted.c, schema.repairs.c
    named = (
        select(r.repair_id)
        .where(r.subscription_id == gaps.subscription_id, r.from_ts <= gaps.from_at, r.to_ts >= gaps.to_at)
        .where(or_(r.kind != "manual", r.state != "failed"))
    )
    c = schema.coverage.c
    goes_on = select(c.subscription_id).where(
        c.subscription_id == gaps.subscription_id, c.ended_at.is_(None), c.state != "stopped"
    )
    query = (
        select(gaps.subscription_id, gaps.from_at, gaps.to_at)
        .join(views.wanted, wanted.subscription_id == gaps.subscription_id)
        .where(or_(gaps.to_at < wanted.to_at, ~goes_on.exists()), ~named.exists())
        .order_by(gaps.from_at)
        .limit(limit)
    )
    with translate_errors(), engine.connect() as connection:
        return [Gap(*row) for row in connection.execute(query)]


def resumed_repairs(engine: Engine, limit: int) -> tuple[list[ResumedRepair], list[Repair]]:
    """Open repairs by window: those whose answers can be looked for, and those that were not followed by listening."""
    c, r = schema.coverage.c, schema.repairs.c
    before = schema.coverage.alias()
    # Answers may come as soon as it was asked, which is before the fact that it was.
    asked_at = (
        select(func.max(before.c.start_seq))
        .where(before.c.subscription_id == c.subscription_id, before.c.instance_id == c.instance_id)
        .where(before.c.start_seq < c.start_seq)
        .scalar_subquery()
    )
    again = and_(c.subscription_id == r.subscription_id, c.state == "live", c.started_at == r.to_ts)
    query = (
        _named_repairs(c.instance_id, func.coalesce(asked_at, c.start_seq).label("seq"))
        .outerjoin(schema.coverage, again)
        .where(r.state == "open", r.kind == "window")
        .order_by(r.repair_id)
        .limit(limit)
    )
    with translate_errors(), engine.connect() as connection:
        rows = connection.execute(query).all()
    found = [(_repair(row), row.instance_id, row.seq) for row in rows]
    listening = [
        ResumedRepair(repair, instance_id, seq) for repair, instance_id, seq in found if instance_id is not None
    ]
    return listening, [repair for repair, instance_id, _ in found if instance_id is None]


def due_repairs(engine: Engine, midnight: datetime) -> Generator[Repair]:
    """Open repairs by question, the most urgent first; days are asked for once ``midnight`` has ended them.

    Holds a connection until it is closed. Without a limit: those that wait must not hide the ones behind them.
    """
    r = schema.repairs.c
    is_due = or_(r.kind.in_(("snapshot", "manual")), and_(r.kind == "historical", r.to_ts <= midnight))
    urgency = case(_FIRST, value=r.kind, else_=9)
    query = _named_repairs().where(r.state == "open", is_due)
    query = query.order_by(urgency, r.attempts, r.from_ts, r.repair_id)
    with (
        translate_errors(),
        engine.connect() as connection,
        connection.execution_options(yield_per=DUE_AT_ONCE).execute(query) as rows,
    ):
        for row in rows:
            yield _repair(row)


def repairs_inside(engine: Engine, repair: Repair, end: datetime) -> list[Repair]:
    """Other open repairs of the same feed and params, whose gaps lie between the start of this one's and ``end``."""
    r, s = schema.repairs.c, schema.subscriptions.c
    query = _named_repairs().where(
        r.state == "open",
        r.repair_id != repair.repair_id,
        s.feed == repair.feed,
        s.params == repair.params,
        r.from_ts >= repair.from_ts,
        r.to_ts <= end,
    )
    with translate_errors(), engine.connect() as connection:
        return [_repair(row) for row in connection.execute(query.limit(1000))]


def load_repairs(engine: Engine, repair_ids: Sequence[int]) -> list[Repair]:
    """These repairs, whatever has become of them."""
    query = _named_repairs().where(schema.repairs.c.repair_id.in_(repair_ids)).order_by(schema.repairs.c.repair_id)
    with translate_errors(), engine.connect() as connection:
        return [_repair(row) for row in connection.execute(query)]


def unfinished_repairs(engine: Engine, ticker: str = "") -> list[Repair]:
    """Repairs that are open, or have failed and are not covered otherwise since: of one ticker, or all.

    The newest first, a thousand at most.
    """
    r, s, c = schema.repairs.c, schema.subscriptions.c, views.covered.c
    has_it = and_(c.subscription_id == r.subscription_id, c.from_at <= r.from_ts, c.to_at >= r.to_ts)
    # Once for all of them: asked for each, the view would be made for each.
    covered = select(r.repair_id).join_from(schema.repairs, views.covered, has_it).where(r.state == "failed")
    query = _named_repairs().where(
        or_(r.state == "open", and_(r.state == "failed", r.repair_id.not_in(covered.correlate(None))))
    )
    query = query.order_by(r.to_ts.desc(), r.repair_id).limit(1000)
    if ticker:
        query = query.where(s.ticker.in_((ticker, "")))
    with translate_errors(), engine.connect() as connection:
        return [_repair(row) for row in connection.execute(query)]


def _named_repairs(*more: Any) -> Select[Any]:
    r, s = schema.repairs, schema.subscriptions
    names = (s.c.feed, s.c.path, s.c.params, s.c.ticker)
    return select(r, *names, *more).join_from(r, s, s.c.subscription_id == r.c.subscription_id)


def _repair(row: Any) -> Repair:
    return Repair(**{name: getattr(row, name) for name in Repair.__dataclass_fields__})


# What it is proven by


def stream_payloads(
    engine: Engine, instance_id: int, seqs: range, since: datetime, paths: Collection[str], limit: int
) -> list[StoredPayload]:
    """What came off the socket for ``paths`` from ``since`` on, in the order of seq; the first of ``seqs``."""
    c = schema.payloads.c
    query = (
        select(c.seq, c.received_at, c.event, c.path, c.params, c.body)
        .where(c.instance_id == instance_id, c.seq >= seqs.start, c.seq < seqs.stop)
        .where(c.path.in_(sorted(paths)), c.source == "stream", c.received_at >= since)
        .order_by(c.seq)
        .limit(limit)
    )
    with translate_errors(), engine.connect() as connection:
        return [StoredPayload(*row) for row in connection.execute(query)]


def known_tickers(engine: Engine, feed: str, limit: int) -> list[str]:
    """The tickers of which anything of this feed was ever stored or asked for, in order."""
    n, s = schema.series.c, schema.subscriptions.c
    asked = select(s.ticker).where(s.feed == feed, s.ticker != "")
    query = select(n.ticker).where(n.feed == feed).union(asked).order_by("ticker").limit(limit)
    with translate_errors(), engine.connect() as connection:
        return list(connection.execute(query).scalars())


def sample_range(
    engine: Engine, feed: str, ticker: str, user_id: str, start: datetime, end: datetime
) -> SampleRange | None:
    """Of which ts the first and last samples of these names are, with ``start`` ≤ ts < ``end``."""
    ts = schema.samples.c.ts
    query = _samples(feed, ticker, user_id, start, end).with_only_columns(func.min(ts), func.max(ts))
    with translate_errors(), engine.connect() as connection:
        first, last = connection.execute(query).one()
    return None if first is None else SampleRange(first, last)


def count_new_rows(engine: Engine, repair: Repair, bucket: timedelta) -> int:
    """How many samples of the gap's time came since: by stream, or by REST once it was asked about."""
    c = schema.samples.c
    # The bucket that the gap begins in was told of in the gap; what a person asks for begins where they say.
    start = repair.from_ts if repair.kind == "manual" else repair.from_ts - bucket
    query = _samples(repair.feed, repair.ticker, repair.user_id, start, repair.to_ts).with_only_columns(func.count())
    if repair.kind == "window":
        query = query.where(c.source == "stream", c.received_at >= repair.from_ts)
    else:
        query = query.where(c.source != "stream", c.received_at >= repair.created_at)
    with translate_errors(), engine.connect() as connection:
        return int(connection.scalar(query) or 0)


def _samples(feed: str, ticker: str, user_id: str, start: datetime, end: datetime) -> Select[Any]:
    n, m = schema.series.c, schema.samples.c
    names = [n.feed == feed]
    names += [n.ticker == ticker] if ticker else []
    names += [n.user_id == user_id] if user_id else []
    ids = select(n.series_id).where(*names)
    return select(schema.samples).where(m.series_id.in_(ids), m.ts >= start, m.ts < end)


# What is written


class LeaseHeldElsewhere(Exception):
    """Another daemon heals for this database."""


class RepairTable:
    """The table, as the writer's thread changes it. ``me``: our instance. Each call is one short transaction.

    Raises LeaseHeldElsewhere where another instance has the lease, DatabaseUnavailable.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acquire_lease(self, me: int) -> None:
        """Take or renew the lease."""
        with translate_errors(), self._engine.begin() as connection:
            _lease(connection, me)

    def open(self, me: int, gaps: Sequence[Gap], now: datetime) -> None:
        """Begin a repair of each gap."""
        rows = [gap._asdict() | {"kind": "window", "state": "open", "created_at": now} for gap in gaps]
        with translate_errors(), self._engine.begin() as connection:
            _lease(connection, me)
            connection.execute(insert_or_ignore(connection, schema.repairs), rows)

    def change_kind(self, me: int, repair_ids: Sequence[int], kind: RepairKind) -> None:
        """From now on they are tried this way."""
        self._change(me, repair_ids, kind=kind, cursor="", error="", attempts=0)

    def advance(self, me: int, repair_id: int, cursor: str) -> None:
        """All up to ``cursor`` is committed."""
        self._change(me, [repair_id], cursor=cursor, error="", attempts=0)

    def postpone(self, me: int, repair_id: int, error: str) -> None:
        """It could not be done now: it is tried again."""
        self._change(me, [repair_id], error=error, attempts=schema.repairs.c.attempts + 1)

    def finish(self, me: int, new_rows: dict[int, int], now: datetime) -> None:
        """They are proven: repair → how many rows it brought."""
        c = schema.repairs.c
        still_open = update(schema.repairs).where(c.repair_id == bindparam("id_"), c.state == "open")
        done = still_open.values(state="done", new_rows=bindparam("count_"), error="", finished_at=now)
        with translate_errors(), self._engine.begin() as connection:
            _lease(connection, me)
            connection.execute(done, [{"id_": id_, "count_": count} for id_, count in new_rows.items()])

    def fail(self, me: int, repair_ids: Sequence[int], error: str, now: datetime) -> None:
        """They cannot be repaired, and ``error`` says why."""
        self._change(me, repair_ids, state="failed", error=error, finished_at=now)

    def request(self, wishes: Sequence[BackfillRequest], now: datetime) -> list[int]:
        """Begin what a person asks for; what failed is begun anew, what is open goes on, what is done stays so.

        A gap that waits for something else is asked for now.

        Returns the ids. Asks for no lease: whoever has it does the work.
        """
        r = schema.repairs.c
        booked = []
        with translate_errors(), self._engine.begin() as connection:
            for wish in wishes:
                gap = Gap(_subscription_id(connection, wish, now), wish.from_ts, wish.to_ts)
                row = gap._asdict() | {"kind": "manual", "state": "open", "created_at": now}
                connection.execute(insert_or_ignore(connection, schema.repairs), [row])
                named = [r[name] == value for name, value in gap._asdict().items()]
                again = {"kind": "manual", "state": "open", "cursor": "", "error": "", "attempts": 0}
                waits = and_(r.state == "open", r.kind != "manual")
                begun = update(schema.repairs).where(*named, or_(r.state == "failed", waits))
                connection.execute(begun.values(again | {"created_at": now, "finished_at": None}))
                booked.append(connection.execute(select(r.repair_id).where(*named)).scalar_one())
        return booked

    def _change(self, me: int, repair_ids: Sequence[int], **values: Any) -> None:
        with translate_errors(), self._engine.begin() as connection:
            _lease(connection, me)
            connection.execute(_still_open(repair_ids).values(values))


def _lease(connection: Connection, me: int) -> None:
    if leases.acquire(connection, LEASE, me, LEASE_TIME) is None:
        raise LeaseHeldElsewhere


def _still_open(repair_ids: Sequence[int]) -> Any:
    c = schema.repairs.c
    return update(schema.repairs).where(c.repair_id.in_(repair_ids), c.state == "open")


def _subscription_id(connection: Connection, wish: BackfillRequest, now: datetime) -> int:
    c = schema.subscriptions.c
    names = {name: getattr(wish, name) for name in ("feed", "path", "method", "params", "ticker")}
    new = insert_or_ignore(connection, schema.subscriptions)
    connection.execute(new, [names | {"first_seen_at": now}])
    query = select(c.subscription_id).where(c.path == wish.path, c.params == wish.params)
    return int(connection.execute(query).scalar_one())
