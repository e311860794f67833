"""The form in which payloads are stored: in blocks, each with the frames of a batch that have the same origin.

A row for each frame would cost three times the processor time and eight times the space. A block is JSON, so that SQL
can open it: the view ``payloads`` does. The elements of its list are those of ``_Element``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ingestor.store.write.batch import Origin, Payload

BLOCK_CHARACTERS = 1 << 20  # of text, from which on a block is full: who wants one frame of it reads all
COLUMNS = (
    "first_seq, connection_id, source, event, path, params, received_at, published_at, row_count, body, last_seq,"
    " frame_count, last_received_at, frames"
)

# The text; then, without what is 0, 0, 1 and None at the end: µs after received_at, how many seqs were left out before
# it, row_count, and published_at in µs after received_at.
_Element: TypeAlias = tuple[str] | tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, int, int | None]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[tuple[Any, ...]]).decode


class PayloadBlock(NamedTuple):
    """A row of ``payload_blocks``, as ``COLUMNS`` name them. One frame has the first fields of its ``Payload``."""

    first_seq: int
    origin: Origin
    received_us: int
    published_us: int | None
    row_count: int
    body: str
    last_seq: int | None = None
    frame_count: int = 1
    last_received_us: int | None = None
    frames: str | None = None


class StoredPayload(NamedTuple):
    """A frame that was read from a block."""

    seq: int
    instance_id: int
    connection_id: str
    source: str
    event: str
    path: str
    params: str
    received_at: datetime
    body: str


def make_blocks(payloads: Iterable[Payload]) -> Iterator[PayloadBlock]:
    """Gather payloads, which are in the order of seq, by origin: connections that take turns share no block."""
    groups: dict[Origin, list[Payload]] = {}
    sizes: dict[Origin, int] = {}
    for payload in payloads:
        origin = payload.origin
        group = groups.get(origin)
        if group is None:
            groups[origin], sizes[origin] = [payload], len(payload.body)
        elif sizes[origin] < BLOCK_CHARACTERS:
            group.append(payload)
            sizes[origin] += len(payload.body)
        else:
            yield _make_block(group)
            groups[origin], sizes[origin] = [payload], len(payload.body)
    yield from map(_make_block, groups.values())


def _make_block(group: Sequence[Payload]) -> PayloadBlock:
    first = group[0]
    if len(group) == 1:
        return PayloadBlock(*first)
    received = [payload.received_us for payload in group]
    since_us = min(received)
    elements = [
        _make_element(payload, payload.received_us - since_us, payload.seq - seq, since_us)
        for seq, payload in enumerate(group, first.seq)
    ]
    return PayloadBlock(
        first_seq=first.seq,
        origin=first.origin,
        received_us=since_us,
        published_us=None,
        row_count=sum(payload.row_count for payload in group),
        body="",
        last_seq=group[-1].seq,
        frame_count=len(group),
        last_received_us=max(received),
        frames=_encode(elements).decode(),
    )


def _make_element(payload: Payload, received_us: int, left_out: int, since_us: int) -> _Element:
    _, _, _, published_us, row_count, body = payload
    if published_us is not None:
        return body, received_us, left_out, row_count, published_us - since_us
    if row_count != 1:
        return body, received_us, left_out, row_count, None
    if left_out:
        return body, received_us, left_out
    return (body, received_us) if received_us else (body,)


def open_block(block: Any) -> list[StoredPayload]:
    """Return the frames of a row of ``payload_blocks``, in the order of seq."""
    names = (block.instance_id, block.connection_id, block.source, block.event, block.path, block.params)
    if block.frames is None:
        return [StoredPayload(block.first_seq, *names, block.received_at, block.body)]
    payloads = []
    for seq, element in enumerate(_decode(block.frames), block.first_seq):
        body, received_us, left_out = (*element, 0, 0)[:3]
        received_at = block.received_at + timedelta(microseconds=received_us)
        payloads.append(StoredPayload(seq + left_out, *names, received_at, body))
    return payloads
