"""What the store is given to write, in one transaction: plain rows, no engine. Stamps are µs since the epoch, UTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ingestor.core.entries import SeriesKey


class SampleRow(NamedTuple):
    """One observation with where it came from."""

    series: SeriesKey
    ts_us: int
    value: float
    published_us: int | None
    received_us: int
    source: str
    seq: int
    row_index: int


class Origin(NamedTuple):
    """Where a frame came from."""

    connection_id: str
    source: str
    event: str
    path: str
    params: str


class Payload(NamedTuple):
    """A frame as it was received."""

    seq: int
    origin: Origin
    received_us: int
    published_us: int | None
    row_count: int
    body: str


class EventRow(NamedTuple):
    """A fact."""

    seq: int
    at_us: int
    kind: str
    detail: str  # JSON


class SubscriptionRow(NamedTuple):
    """A subscription's names, as they are interned."""

    path: str
    method: str
    params: str  # canonical JSON
    feed: str
    ticker: str


class Transition(NamedTuple):
    """From ``since_us`` on, these subscriptions were in this state. None named: all that were not stopped."""

    seq: int
    since_us: int
    state: str
    reason: str
    subscriptions: Sequence[SubscriptionRow]
    others: bool = False  # it is those that are not named


class DeadLetter(NamedTuple):
    """A row (with ``row_index``) or a frame that could not be read, or that the database refused."""

    seq: int
    row_index: int | None
    received_us: int
    stage: str  # decode | insert
    reason: str
    detail: str
    body: str


@dataclass(slots=True, kw_only=True)
class Batch:
    """Whole entries, gapless: what one transaction writes."""

    first_seq: int
    last_seq: int
    rows: list[SampleRow] = field(default_factory=list)
    payloads: list[Payload] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    frames: int = 0
    facts: int = 0
    row_count: int = 0  # rows decoded: those above, those known already, expired and dead ones
    deduplicated_rows: int = 0  # repetitions of what was said last, left out
    expired: list[SampleRow] = field(default_factory=list)  # taken out: older than samples are kept
    origins: dict[int, Origin] = field(default_factory=dict)  # of each frame, by seq
    retries: dict[int, int] = field(default_factory=dict)  # seq of a frame → the dead letter that it tries again

    def expire(self, before_us: int) -> None:
        """Take out the rows of a time before that, and count them: also if the batch is written again, once each."""
        self.expired += [row for row in self.rows if row.ts_us < before_us]
        self.rows = [row for row in self.rows if row.ts_us >= before_us]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What became of a batch's rows: rows decoded = new + revised + duplicate + dead + expired."""

    new: int
    revised: int
    duplicate: int
    dead_rows: int
    dead_frames: int
    expired: int = 0  # older than samples are kept, and not written
    dead_siblings: int = 0  # values refused beside another of their row: with it they are one dead row
    uncertain_keys: frozenset[tuple[SeriesKey, int]] = frozenset()  # (series, ts) of which another value may be current
