"""What a database was told, in the order in which it was told it: the payloads that are kept, and the dead letters."""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine, Row, Table, and_, func, literal, or_, select, tuple_, union_all

from ingestor.store import schema
from ingestor.store.engine import sqlite_path, translate_errors

FETCH_ROWS = 20  # a payload may have megabytes

_ORIGIN = ("instance_id", "seq", "connection_id", "source", "event", "path", "params", "received_at", "body")
_Mark: TypeAlias = tuple[str, datetime, bytes]  # connection_id, receipt, hash of the text
_Place: TypeAlias = tuple[int, int]  # instance_id, seq


class EntryRange(NamedTuple):
    """Entries that follow each other in one instance."""

    instance_id: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEntry:
    """A frame as it is stored, in a payload or a dead letter."""

    instance_id: int
    seq: int
    columns: Mapping[str, Any]  # column → value
    is_retry: bool  # it tried a dead letter again: its seq says nothing of when it was received


def is_same_database(one: Engine, other: Engine) -> bool:
    """Whether both lead to one database, whatever their URLs look like. Raises DatabaseUnavailable."""
    paths = [sqlite_path(str(engine.url)) for engine in (one, other)]
    if paths[0] and paths[1]:
        return paths[1].exists() and paths[0].samefile(paths[1])
    if paths[0] or paths[1]:
        return False
    key = secrets.randbits(62)
    with translate_errors(), one.connect() as holder, other.connect() as second:
        holder.execute(select(func.pg_advisory_xact_lock(key)))  # is in the way of others in the same database only
        return not second.execute(select(func.pg_try_advisory_xact_lock(key))).scalar_one()


def instances_by_spool(connection: Connection) -> dict[str, int]:
    """spool_id → instance_id."""
    c = schema.instances.c
    return {row.spool_id: row.instance_id for row in connection.execute(select(c.spool_id, c.instance_id))}


def oldest_payload_at(connection: Connection) -> datetime | None:
    """The receipt of the first payload that retention has left; None where there is none.

    Not the oldest receipt of all: a dead letter that was tried again is a payload with its old stamp.
    """
    p = schema.payloads.c
    firsts = select(p.instance_id, func.min(p.seq)).group_by(p.instance_id)
    query = select(func.min(p.received_at)).where(tuple_(p.instance_id, p.seq).in_(firsts))
    first: datetime | None = connection.execute(query).scalar_one()
    return first


def entry_ranges(connection: Connection, start: datetime, end: datetime) -> list[EntryRange]:
    """Of each instance: from its first entry that was received at ``start`` or later to its last one before ``end``.

    By their seqs, since a clock may have been set back meanwhile.
    """
    of_time = [select(t.c.instance_id, t.c.seq).where(t.c.received_at >= start, t.c.received_at < end) for t in _TABLES]
    told = union_all(*of_time).subquery().c
    query = select(told.instance_id, func.min(told.seq), func.max(told.seq)).group_by(told.instance_id)
    return [EntryRange(*row) for row in connection.execute(query.order_by(told.instance_id))]


def count_entries(connection: Connection, of: Sequence[EntryRange]) -> int:
    """How many there are to be told again."""
    queries = [select(func.count()).select_from(_told(one).subquery()) for one in of]
    return sum(connection.execute(query).scalar_one() for query in queries)


def read_entries(connection: Connection, of: Sequence[EntryRange]) -> Generator[ReplayEntry]:
    """In the order in which it was committed."""
    tried = _tried_again(connection) if of else {}
    for turn in _turns(connection, of) if of else ():
        with connection.execute(_told(turn), execution_options={"yield_per": FETCH_ROWS}) as rows:
            for row in rows:
                originals = tried.get(_mark(row), set())
                retried = bool(originals) and (row.instance_id, row.seq) not in originals
                yield ReplayEntry(instance_id=row.instance_id, seq=row.seq, columns=row._asdict(), is_retry=retried)


_TABLES: Sequence[Table] = (schema.payloads, schema.dead_letters)


def _told(of: EntryRange) -> Any:
    """Payloads, and the dead letters that no payload and no later try speaks for."""
    p, d = schema.payloads.c, schema.dead_letters.c
    mine = [(c.instance_id == of.instance_id) & c.seq.between(of.first_seq, of.last_seq) for c in (p, d)]
    elsewhere = select(p.seq).where(p.instance_id == d.instance_id, p.seq == d.seq).exists()
    payloads = select(*(p[name] for name in _ORIGIN), literal(0).label("row_index")).where(mine[0])
    letters = select(*(d[name] for name in _ORIGIN), func.coalesce(d.row_index, 0))
    letters = letters.where(mine[1], d.retried_at.is_(None), ~elsewhere)
    return union_all(payloads, letters).order_by("seq", "row_index")


def _tried_again(connection: Connection) -> dict[_Mark, set[_Place]]:
    """By what a try has in common with its dead letter: where the letters are."""
    d = schema.dead_letters.c
    query = select(*(d[name] for name in _ORIGIN)).where(d.retried_at.is_not(None))
    found: dict[_Mark, set[_Place]] = defaultdict(set)
    for row in connection.execute(query, execution_options={"yield_per": FETCH_ROWS}):
        found[_mark(row)].add((row.instance_id, row.seq))
    return found


def _mark(row: Row[Any]) -> _Mark:
    return row.connection_id, row.received_at, hashlib.sha256(row.body.encode()).digest()


def _turns(connection: Connection, of: Sequence[EntryRange]) -> Iterator[EntryRange]:
    """The instances by turns, as they committed; what is of one instance always by its seq."""
    b = schema.batches.c
    wanted = [and_(b.instance_id == id_, b.last_seq >= first, b.first_seq <= last) for id_, first, last in of]
    at = func.max(b.committed_at).over(partition_by=b.instance_id, order_by=b.first_seq)  # a clock may be set back
    query = select(b.instance_id, b.first_seq, b.last_seq).where(or_(*wanted)).order_by(at, b.instance_id, b.first_seq)
    limits = {one.instance_id: one for one in of}
    turn: EntryRange | None = None
    with connection.execute(query, execution_options={"yield_per": 1000}) as rows:
        for id_, first_seq, last_seq in rows:
            first, last = max(first_seq, limits[id_].first_seq), min(last_seq, limits[id_].last_seq)
            if turn and turn.instance_id == id_:
                turn = turn._replace(last_seq=last)
                continue
            if turn:
                yield turn
            turn = EntryRange(id_, first, last)
    if turn:
        yield turn
