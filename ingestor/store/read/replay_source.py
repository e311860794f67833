"""Read the stored payloads and dead letters of a database in the order in which they were committed, to replay them."""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from heapq import merge
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine, and_, func, or_, select, tuple_

from ingestor.store import schema
from ingestor.store.engine import translate_errors
from ingestor.store.read.payloads import FETCH_BLOCKS, read_payloads
from ingestor.store.write.payload_blocks import StoredPayload, open_block

FETCH_ROWS = 20  # a dead letter may be several megabytes

_COLUMNS = ("instance_id", "seq", "connection_id", "source", "event", "path", "params", "received_at", "body")
_Origin: TypeAlias = tuple[str, datetime, bytes]  # connection_id, received_at, hash of the body
_EntryKey: TypeAlias = tuple[int, int]  # instance_id, seq


class EntryRange(NamedTuple):
    """Consecutive entries of one instance."""

    instance_id: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEntry:
    """A stored frame: a payload or a dead letter."""

    instance_id: int
    seq: int
    columns: Mapping[str, Any]  # column → value
    is_retry: bool  # of a dead letter: its seq says nothing about when it was received


def is_same_database(first: Engine, second: Engine) -> bool:
    """Return True if both engines lead to the same database, whatever their URLs. Raises DatabaseUnavailable.

    PostgreSQL: lock a random key through one engine and try to lock it through the other. Advisory locks are local to a
    database, so the second attempt fails only if both are connected to the same one.
    """
    path, other_path = map(_sqlite_file, (first, second))
    if path and other_path:
        return other_path.exists() and path.samefile(other_path)
    if path or other_path:
        return False
    key = secrets.randbits(62)
    with translate_errors(), first.connect() as holder, second.connect() as connection:
        holder.execute(select(func.pg_advisory_xact_lock(key)))
        return not connection.execute(select(func.pg_try_advisory_xact_lock(key))).scalar_one()


def _sqlite_file(engine: Engine) -> Path | None:
    return Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None


def instances_by_spool(connection: Connection) -> dict[str, int]:
    """Return spool_id → instance_id."""
    c = schema.instances.c
    return {row.spool_id: row.instance_id for row in connection.execute(select(c.spool_id, c.instance_id))}


def oldest_payload_at(connection: Connection) -> datetime | None:
    """Return ``received_at`` of the first payload that retention has left, or None.

    This is not the lowest ``received_at``: a retried dead letter is a payload that keeps its old timestamp.
    """
    p = schema.payload_blocks.c
    firsts = select(p.instance_id, func.min(p.first_seq)).group_by(p.instance_id)
    query = select(func.min(p.received_at)).where(tuple_(p.instance_id, p.first_seq).in_(firsts))
    received_at: datetime | None = connection.execute(query).scalar_one()
    return received_at


def entry_ranges(connection: Connection, start: datetime, end: datetime) -> list[EntryRange]:
    """Return for each instance the range from the first to the last entry with ``start <= received_at < end``.

    A range of seqs includes entries whose ``received_at`` is outside because the clock was set back.
    """
    d, p = schema.dead_letters.c, schema.payload_blocks.c
    received = (d.received_at >= start, d.received_at < end)
    letters = select(d.instance_id, func.min(d.seq), func.max(d.seq)).where(*received).group_by(d.instance_id)
    inside = and_(p.received_at >= start, end > p.last_received_at)
    ends = select(p.instance_id, func.min(p.first_seq), func.max(p.last_seq)).where(inside).group_by(p.instance_id)
    in_part = select(schema.payload_blocks).where(p.received_at < end, start <= p.last_received_at, ~inside)
    found = [EntryRange(*row) for query in (letters, ends) for row in connection.execute(query)]
    with connection.execute(in_part, execution_options={"yield_per": FETCH_BLOCKS}) as blocks:
        payloads = (payload for block in blocks for payload in open_block(block))
        found += [EntryRange(p.instance_id, p.seq, p.seq) for p in payloads if start <= p.received_at < end]
    return _join_ranges(found)


def _join_ranges(ranges: Sequence[EntryRange]) -> list[EntryRange]:
    """Return one range for each instance, which contains all of its ranges."""
    instances = groupby(sorted(ranges), key=attrgetter("instance_id"))
    parts = [(instance_id, list(group)) for instance_id, group in instances]
    return [EntryRange(id_, group[0].first_seq, max(part.last_seq for part in group)) for id_, group in parts]


def count_entries(connection: Connection, ranges: Sequence[EntryRange]) -> int:
    """Count the entries that ``read_entries`` yields. Reads them all."""
    return sum(1 for entries in ranges for _ in _stored_frames(connection, entries))


def read_entries(connection: Connection, ranges: Sequence[EntryRange]) -> Generator[ReplayEntry]:
    """Yield the entries of ``ranges`` in the order in which they were committed."""
    retried = _retried_letters(connection) if ranges else {}
    for entries in _in_commit_order(connection, ranges) if ranges else ():
        for frame in _stored_frames(connection, entries):
            letters = retried.get(_origin(frame), set())
            is_retry = bool(letters) and (frame.instance_id, frame.seq) not in letters
            yield ReplayEntry(instance_id=frame.instance_id, seq=frame.seq, columns=frame._asdict(), is_retry=is_retry)


def _stored_frames(connection: Connection, entries: EntryRange) -> Iterator[Any]:
    """Yield the payloads, and the dead letters that were not retried and have no payload of the same entry."""
    payloads = read_payloads(lambda query: connection.execute(query).all(), *entries)
    payload_seq = -1
    # The payload comes first among entries of the same seq, because its iterator does.
    for frame in merge(payloads, _letters(connection, entries), key=attrgetter("seq")):
        if isinstance(frame, StoredPayload):
            payload_seq = frame.seq
            yield frame
        elif frame.seq != payload_seq:
            yield frame


def _letters(connection: Connection, entries: EntryRange) -> Iterator[Any]:
    d = schema.dead_letters.c
    within = (d.instance_id == entries.instance_id, d.seq.between(entries.first_seq, entries.last_seq))
    query = select(*(d[name] for name in _COLUMNS), func.coalesce(d.row_index, 0).label("row_index"))
    query = query.where(*within, d.retried_at.is_(None)).order_by("seq", "row_index")
    with connection.execute(query, execution_options={"yield_per": FETCH_ROWS}) as rows:
        yield from rows


def _retried_letters(connection: Connection) -> dict[_Origin, set[_EntryKey]]:
    """Return the entries of all retried dead letters, by the origin that a letter shares with its retry."""
    d = schema.dead_letters.c
    query = select(*(d[name] for name in _COLUMNS)).where(d.retried_at.is_not(None))
    letters: dict[_Origin, set[_EntryKey]] = defaultdict(set)
    for row in connection.execute(query, execution_options={"yield_per": FETCH_ROWS}):
        letters[_origin(row)].add((row.instance_id, row.seq))
    return letters


def _origin(row: Any) -> _Origin:
    return row.connection_id, row.received_at, hashlib.sha256(row.body.encode()).digest()


def _in_commit_order(connection: Connection, ranges: Sequence[EntryRange]) -> Iterator[EntryRange]:
    """Split ``ranges`` so that instances alternate as they committed. Entries of one instance stay in seq order."""
    b = schema.batches.c
    in_range = [and_(b.instance_id == id_, b.last_seq >= first, b.first_seq <= last) for id_, first, last in ranges]
    # A running maximum, because the clock may have been set back.
    at = func.max(b.committed_at).over(partition_by=b.instance_id, order_by=b.first_seq)
    query = select(b.instance_id, b.first_seq, b.last_seq).where(or_(*in_range))
    query = query.order_by(at, b.instance_id, b.first_seq)
    limits = {entries.instance_id: entries for entries in ranges}
    with connection.execute(query, execution_options={"yield_per": 1000}) as rows:
        for instance_id, batches in groupby(map(EntryRange._make, rows), attrgetter("instance_id")):
            whole = reduce(lambda first, last: first._replace(last_seq=last.last_seq), batches)
            limit = limits[instance_id]
            yield EntryRange(instance_id, max(whole.first_seq, limit.first_seq), min(whole.last_seq, limit.last_seq))
