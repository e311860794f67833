"""The form in which payloads are stored: in blocks, each with the frames of a batch that have the same origin.

A row for each frame would cost three times the processor time and eight times the space. A block is JSON, so that SQL
can open it: the view ``payloads`` does. An element of its list is [text, µs after received_at, seqs left out before it,
row_count, published: µs after received_at]. A block leaves out what is 0, 1 and null at the end of all of its elements.
If ``body`` has the rows of rolling windows, each text is a ``Place`` in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import msgspec

from ingestor.store.write.batch import Origin, PayloadColumns
from ingestor.store.write.window_strips import Place, cut_window, join_windows

BLOCK_CHARACTERS = 1 << 20  # of text, from which on a block is full: who wants one frame of it reads all
COLUMNS = (
    "first_seq, connection_id, source, event, path, params, received_at, published_at, row_count, body, last_seq,"
    " frame_count, last_received_at, pieces, frames"
)

COMPACT_CHARACTERS = 4_096  # of a block, from which on finding its pieces (some 0.2 ms) pays: a page of SQLite
_MAX_PIECES = 6  # the view replaces as many
_MIN_PIECE = 4  # characters
_SAMPLE = 180  # characters: more than a row, with all that is repeated
_PLACES = (1 / 3, 2 / 5, 5 / 7)  # uneven: in windows of equal length, quarters would be the same row, with the same ts

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[tuple[Any, ...]]).decode
_decode_pieces = msgspec.json.Decoder(list[str]).decode


class PayloadBlock(NamedTuple):
    """A row of ``payload_blocks``, as ``COLUMNS`` name them."""

    first_seq: int
    origin: Origin
    received_us: int
    published_us: int | None
    row_count: int
    body: str
    last_seq: int
    frame_count: int
    last_received_us: int
    pieces: str | None = None
    frames: str | None = None


def columns_of(block: PayloadBlock, to_time: Callable[[int | None], Any]) -> tuple[Any, ...]:
    """Return the values of ``COLUMNS``, with times as a database takes them."""
    seq, origin, received_us, published_us, row_count, body, last_seq, frame_count, last_us, pieces, frames = block
    times = to_time(received_us), to_time(published_us)
    return seq, *origin, *times, row_count, body, last_seq, frame_count, to_time(last_us), pieces, frames


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


def make_blocks(payloads: Mapping[Origin, PayloadColumns]) -> Iterator[PayloadBlock]:
    """Make blocks of the payloads of each origin: connections may take turns frame by frame."""
    for origin, columns in payloads.items():
        for part in _split(columns):
            yield _make_block(origin, part)


def _split(columns: PayloadColumns) -> Iterator[PayloadColumns]:
    """Split payloads where a block is full."""
    lengths = list(map(len, columns.bodies))
    if sum(lengths) <= BLOCK_CHARACTERS:
        yield columns
        return
    start, characters = 0, 0
    for end, length in enumerate(lengths, 1):
        characters += length
        if characters > BLOCK_CHARACTERS or end == len(lengths):
            yield columns.part(start, end)
            start, characters = end, 0


def _make_block(origin: Origin, payloads: PayloadColumns) -> PayloadBlock:
    seqs, received, bodies = payloads.seqs, payloads.received_us, payloads.bodies
    since_us, body = min(received), ""
    published_us: int | None = None
    frames: str | None = None
    if len(seqs) == 1 and len(bodies[0]) < COMPACT_CHARACTERS:
        published_us, body = payloads.published_us[0], bodies[0]
    elif windows := join_windows(bodies):
        body, frames = windows.text, _encode_frames(windows.places, payloads, since_us)
    else:
        frames = _encode_frames(bodies, payloads, since_us)
    return PayloadBlock(
        first_seq=seqs[0],
        origin=origin,
        received_us=since_us,
        published_us=published_us,
        row_count=sum(payloads.row_counts),
        body=body,
        last_seq=seqs[-1],
        frame_count=len(seqs),
        last_received_us=max(received),
        frames=frames,
    )


def _encode_frames(texts: Sequence[str | Place], payloads: PayloadColumns, since_us: int) -> str:
    """Return the frames of a block. Built by columns: frame by frame it takes twice as long."""
    seqs, row_counts, published = payloads.seqs, payloads.row_counts, payloads.published_us
    frame_count = len(seqs)
    columns: list[Sequence[Any]] = [texts, [received_us - since_us for received_us in payloads.received_us]]
    has_defaults = published.count(None) == row_counts.count(1) == frame_count
    if not has_defaults or seqs[-1] - seqs[0] >= frame_count:
        columns.append([seq - place for place, seq in enumerate(seqs, seqs[0])])
    if not has_defaults:
        columns += [row_counts, [None if us is None else us - since_us for us in published]]
    return _encode(list(zip(*columns, strict=True))).decode()


def compact(block: PayloadBlock) -> PayloadBlock:
    """Return the block with control characters for what is repeated in it: a third of the space, 0.6 µs for a frame.

    For SQLite, which does not compress; the server does it better. JSON never has control characters as they are.
    """
    frames, pieces = block.frames, list[str]()
    if frames is None or block.body or len(frames) < COMPACT_CHARACTERS:  # of windows, nothing is left to find
        return block
    for piece in _find_repeated(frames):
        shorter = frames.replace(piece, chr(len(pieces) + 1))
        if len(shorter) < len(frames):
            frames = shorter
            pieces.append(piece)
    return block._replace(frames=frames, pieces=_encode(pieces).decode())


def _find_repeated(frames: str) -> list[str]:
    """Return what three parts of a block have in common, the longest first."""
    first, *others = (_words(frames, int(len(frames) * place)) for place in _PLACES)
    common = [first]
    for other in others:
        common = [part for words in common for part in _common_parts(words, other)]
    pieces = {"".join(words) for words in common}
    return sorted((piece for piece in pieces if len(piece) >= _MIN_PIECE), key=len, reverse=True)[:_MAX_PIECES]


def _words(frames: str, place: int) -> list[str]:
    """Return the words from the row at a place on. By characters, comparing would take five times as long."""
    start = max(frames.rfind("{", 0, place), 0)
    return re.findall(r"\w+|\W+", frames[start : start + _SAMPLE])


def _common_parts(first: list[str], second: list[str]) -> list[list[str]]:
    matches = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    return [first[match.a : match.a + match.size] for match in matches if match.size]


def _expand(block: Any) -> str:
    frames: str = block.frames
    if block.pieces is not None:
        for place, piece in enumerate(_decode_pieces(block.pieces), 1):
            frames = frames.replace(chr(place), piece)
    return frames


def open_block(block: Any) -> list[StoredPayload]:
    """Return the frames of a row of ``payload_blocks``, in the order of seq."""
    names = (block.instance_id, block.connection_id, block.source, block.event, block.path, block.params)
    if block.frames is None:
        return [StoredPayload(block.first_seq, *names, block.received_at, block.body)]
    payloads = []
    for seq, element in enumerate(_decode(_expand(block)), block.first_seq):
        text, received_us, left_out = (*element, 0, 0)[:3]
        body = cut_window(block.body, text) if block.body else text
        received_at = block.received_at + timedelta(microseconds=received_us)
        payloads.append(StoredPayload(seq + left_out, *names, received_at, body))
    return payloads
