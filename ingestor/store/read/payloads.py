"""Read stored payloads in the order in which they were received, one block after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from ingestor.store import schema
from ingestor.store.write.payload_blocks import StoredPayload, open_block

FETCH_BLOCKS = 20  # a block may have a megabyte, or one payload of several

_c = schema.payload_blocks.c


def read_payloads(
    fetch: Callable[[Select[Any]], Sequence[Any]],
    instance_id: int,
    first_seq: int,
    last_seq: int,
    *conditions: ColumnElement[bool],
) -> Iterator[StoredPayload]:
    """Yield the payloads of a range of seqs in their order, from the blocks that meet ``conditions``.

    ``fetch`` runs a query and returns its rows; each call may use a transaction of its own. Blocks of a batch overlap:
    what a batch has may be in memory.
    """
    waiting: list[StoredPayload] = []
    for block in _read_blocks(fetch, instance_id, first_seq, last_seq, conditions):
        while waiting and waiting[0].seq < block.first_seq:
            yield heappop(waiting)
        for payload in open_block(block):
            if first_seq <= payload.seq <= last_seq:
                heappush(waiting, payload)
    while waiting:
        yield heappop(waiting)


def _read_blocks(
    fetch: Callable[[Select[Any]], Sequence[Any]],
    instance_id: int,
    first_seq: int,
    last_seq: int,
    conditions: Sequence[ColumnElement[bool]],
) -> Iterator[Any]:
    b = schema.batches.c
    # A block is part of one batch, so none that begins before the batch of the first seq can reach to it.
    batch = select(func.max(b.first_seq)).where(b.instance_id == instance_id, b.first_seq <= first_seq)
    start: ColumnElement[bool] = _c.first_seq >= func.coalesce(batch.scalar_subquery(), 0)
    within = (_c.instance_id == instance_id, _c.first_seq <= last_seq, first_seq <= _c.last_seq, *conditions)
    query = select(schema.payload_blocks).where(*within).order_by(_c.first_seq).limit(FETCH_BLOCKS)
    while page := fetch(query.where(start)):
        yield from page
        if len(page) < FETCH_BLOCKS:
            return
        start = _c.first_seq > page[-1].first_seq
