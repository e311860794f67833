"""The rows that one transaction writes, and its result. Times ending in ``_us`` are µs since the epoch, UTC."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import NamedTuple

from ingestor.core.entries import GroupKey, LetterOrigin, SeriesKey


class SampleRow(NamedTuple):
    """One observation with its origin."""

    series: SeriesKey
    ts_us: int
    value: float
    published_us: int | None
    received_us: int
    source: str
    seq: int
    row_index: int


class Origin(NamedTuple):
    """The origin of a frame."""

    connection_id: str
    source: str
    event: str
    path: str
    params: str


@dataclass(slots=True)
class PayloadColumns:
    """Frames of one origin as they were received, in the order of seq: an element for each in every list."""

    seqs: list[int] = field(default_factory=list)
    received_us: list[int] = field(default_factory=list)
    published_us: list[int | None] = field(default_factory=list)
    row_counts: list[int] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)

    def add(self, seq: int, received_us: int, published_us: int | None, row_count: int, body: str) -> None:
        self.seqs.append(seq)
        self.received_us.append(received_us)
        self.published_us.append(published_us)
        self.row_counts.append(row_count)
        self.bodies.append(body)

    def add_single_rows(self, first_seq: int, received_us: Sequence[int], bodies: Sequence[str]) -> None:
        """Add consecutive frames of one row each."""
        count = len(bodies)
        self.seqs += range(first_seq, first_seq + count)
        self.received_us += received_us
        self.published_us += [None] * count
        self.row_counts += [1] * count
        self.bodies += bodies

    def part(self, start: int, end: int) -> PayloadColumns:
        return PayloadColumns(
            self.seqs[start:end],
            self.received_us[start:end],
            self.published_us[start:end],
            self.row_counts[start:end],
            self.bodies[start:end],
        )


class EventRow(NamedTuple):
    """A fact, as a row of the table `events`."""

    seq: int
    at_us: int
    kind: str
    detail: str  # JSON


class SubscriptionRow(NamedTuple):
    """The columns of a subscription that are interned."""

    path: str
    method: str
    params: str  # canonical JSON
    feed: str
    ticker: str
    connection_params: str = ""


class Transition(NamedTuple):
    """A change of state at ``since_us``.

    It applies to the listed subscriptions; without any to all that are not stopped, of one connection if a ``group`` is
    given; with ``others`` to all known ones except those listed. With ``until_us`` the clock was set: without a change
    of state, every interval ends then, and another one begins at ``since_us`` by the new clock.
    """

    seq: int
    since_us: int
    state: str
    reason: str
    subscriptions: Sequence[SubscriptionRow]
    others: bool = False
    group: GroupKey | None = None
    until_us: int | None = None


class DeadLetter(NamedTuple):
    """A row (with ``row_index``) or a frame that could not be decoded, or that the database rejected."""

    seq: int
    row_index: int | None
    received_us: int
    stage: str  # decode | insert
    reason: str
    detail: str
    body: str


class RetriedLetter(NamedTuple):
    """A dead letter that was retried. After a loss, another instance may have its id, and a letter of this origin."""

    origin: LetterOrigin | None  # None: not known
    received_us: int


@dataclass(slots=True, kw_only=True)
class Batch:
    """Whole entries without a gap between their seqs: what one transaction writes."""

    first_seq: int
    last_seq: int
    first_us: int = 0  # when its first entry was received or recorded
    rows: list[SampleRow] = field(default_factory=list)
    payloads: defaultdict[Origin, PayloadColumns] = field(default_factory=partial(defaultdict, PayloadColumns))
    events: list[EventRow] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    frames: int = 0
    facts: int = 0
    row_count: int = 0  # rows decoded: those in `rows`, and the deduplicated, expired and dead ones
    deduplicated_rows: int = 0  # left out, because the value was committed before
    expired: list[SampleRow] = field(default_factory=list)  # taken out of `rows`: older than the retention of samples
    origins: list[tuple[int, Origin]] = field(default_factory=list)  # (seq, origin of the frames from there on)
    retries: dict[int, RetriedLetter] = field(default_factory=dict)  # seq of a frame → the letter that it retries

    def set_origin(self, seq: int, origin: Origin) -> None:
        """Set the origin of the frames from ``seq`` on."""
        if not self.origins or self.origins[-1][1] is not origin:
            self.origins.append((seq, origin))

    def origin_of(self, seq: int) -> Origin:
        """Return the origin of a frame."""
        return self.origins[bisect_right(self.origins, seq, key=itemgetter(0)) - 1][1]

    def expire(self, before_us: int) -> None:
        """Move rows with an earlier ts from ``rows`` to ``expired``. May be called again if the batch is retried."""
        self.expired += [row for row in self.rows if row.ts_us < before_us]
        self.rows = [row for row in self.rows if row.ts_us >= before_us]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """The outcome of a batch's rows: rows decoded = new + revised + duplicate + dead + expired."""

    new: int
    revised: int
    duplicate: int
    dead_rows: int
    dead_frames: int
    expired: int = 0  # older than the retention of samples, hence not written
    dead_siblings: int = 0  # rejected values beyond the first of their row, which count as one dead row
    uncertain_keys: frozenset[tuple[SeriesKey, int]] = (
        frozenset()
    )  # (series, ts) for which another value may be current
