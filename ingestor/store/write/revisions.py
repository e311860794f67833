"""Decide which of several values of a series and ts is current and which are revisions. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from ingestor.store.write.batch import SampleRow

SampleKey: TypeAlias = tuple[int, int]  # (series_id, ts in µs since the epoch)


class SampleValue(NamedTuple):
    """A value as it was received. Times are µs since the epoch, UTC."""

    value: float
    published_us: int | None
    received_us: int
    source: str
    instance_id: int
    seq: int
    retried: bool = False  # from a dead letter, whose seq does not tell when it was received; not stored

    @classmethod
    def from_row(cls, row: SampleRow, instance_id: int, *, retried: bool) -> SampleValue:
        return cls(row.value, row.published_us, row.received_us, row.source, instance_id, row.seq, retried)

    def later_than(self, other: SampleValue) -> bool:
        """Return whether this value replaces the other.

        Within an instance, values from the socket are ordered by seq, because the clock may have been set back.
        Otherwise by time: between instances, for REST responses (``received_us`` is when the request was sent, since
        the response may reflect that moment), and for retried dead letters.
        """
        if self.instance_id == other.instance_id and self.source == other.source == "stream" and not self.retried:
            return self.seq >= other.seq  # equal within a frame, where the last one counts
        return (self.received_us, self.instance_id, self.seq) >= (other.received_us, other.instance_id, other.seq)


@dataclass(slots=True)
class SampleRecord:
    """All values recorded for a series and ts: the current one, and the others numbered in order of arrival."""

    current: SampleValue
    revision: int = 0  # the number of other values
    other_values: set[float] = field(default_factory=set)
    new_revisions: list[tuple[int, SampleValue]] = field(default_factory=list)  # (revision, value) not yet stored
    changed: bool = False

    def offer(self, value: SampleValue) -> bool:
        """Add a value. Returns False if it changes nothing.

        A later value becomes current, also if it was current before, and the value it replaces becomes a revision. A
        value that arrived late never becomes current; it becomes a revision if it was not recorded yet.
        """
        if value.value == self.current.value:
            return False
        if value.later_than(self.current):
            value, self.current = self.current, value
        elif value.value in self.other_values:
            return False
        self.new_revisions.append((self.revision, value))
        self.other_values.add(value.value)
        self.revision += 1
        self.changed = True
        return True


class GroupedRows(NamedTuple):
    """A batch's rows by key: the first of each key, the repeats of it, and the keys with different values."""

    first: dict[SampleKey, SampleRow]
    repeats: dict[SampleKey, list[SampleRow]]
    restated: set[SampleKey]

    def rows_of(self, key: SampleKey) -> list[SampleRow]:
        """Return all rows of a key, in seq order."""
        return [self.first[key], *self.repeats.get(key, ())]

    def count_repeats(self, keys: Iterable[SampleKey], disputed: Set[SampleKey]) -> int:
        """Count the rows of ``keys`` that repeat the first one's value."""
        return sum(len(self.repeats[key]) for key in keys if key in self.repeats and key not in disputed)


def group_by_key(keys: Sequence[SampleKey], rows: Sequence[SampleRow]) -> GroupedRows:
    """Group a batch's rows by key, in seq order.

    Rows that repeat a value are kept: another instance may have written another value between the first and them.
    """
    first = dict(zip(keys, rows, strict=True))
    repeats: dict[SampleKey, list[SampleRow]] = {}
    restated: set[SampleKey] = set()
    if len(first) == len(rows):  # nearly always, because known values were left out
        return GroupedRows(first, repeats, restated)
    first.clear()
    for key, row in zip(keys, rows, strict=True):
        first_row = first.setdefault(key, row)
        if first_row is row:
            continue
        repeats.setdefault(key, []).append(row)
        if first_row.value != row.value:
            restated.add(key)
    return GroupedRows(first, repeats, restated)
