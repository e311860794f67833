"""Which of several values of one series and ts is current, and which are revisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from ingestor.store.write.batch import SampleRow

SampleKey: TypeAlias = tuple[int, int]  # (series_id, ts in µs since the epoch)


class SampleValue(NamedTuple):
    """One value as it was received. Stamps are µs since the epoch, UTC."""

    value: float
    published_us: int | None
    received_us: int
    source: str
    instance_id: int
    seq: int
    retried: bool = False  # off a dead letter: its seq says nothing of when it was received; not stored

    @classmethod
    def from_row(cls, row: SampleRow, instance_id: int, *, retried: bool) -> SampleValue:
        return cls(row.value, row.published_us, row.received_us, row.source, instance_id, row.seq, retried)

    def later_than(self, other: SampleValue) -> bool:
        """Within an instance what came off the socket is ordered by seq: its clock may have been set back.

        Between instances, for REST answers (as old as their question, which was asked at ``received_us``) and for what
        is tried again, the stamp decides.
        """
        if self.instance_id == other.instance_id and self.source == other.source == "stream" and not self.retried:
            return self.seq >= other.seq  # of two in one frame the last one counts
        mine, theirs = (self.received_us, self.instance_id, self.seq), (other.received_us, other.instance_id, other.seq)
        return mine >= theirs


@dataclass(slots=True)
class SampleRecord:
    """What is recorded of one series at one ts: the current value and every other, numbered in order of arrival."""

    current: SampleValue
    revision: int = 0  # how many others there are
    other_values: set[float] = field(default_factory=set)
    new_revisions: list[tuple[int, SampleValue]] = field(default_factory=list)  # (revision, value) not yet stored
    changed: bool = False

    def offer(self, value: SampleValue) -> bool:
        """Take a value in; False if it says nothing new.

        A later value becomes current and the one before it a revision, even if the same number was current once: it is
        so again. A late one never becomes current, and is a revision if that number was not recorded yet.
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
    """A batch's rows by key: the first of each, those that followed, and the keys whose values differ."""

    first: dict[SampleKey, SampleRow]
    repeats: dict[SampleKey, list[SampleRow]]
    restated: set[SampleKey]

    def rows_of(self, key: SampleKey) -> list[SampleRow]:
        """All rows of a key, in seq order."""
        return [self.first[key], *self.repeats.get(key, ())]

    def count_repeats(self, keys: Iterable[SampleKey], disputed: Set[SampleKey]) -> int:
        """How many values of ``keys`` say once more what the first one said."""
        return sum(len(self.repeats[key]) for key in keys if key in self.repeats and key not in disputed)


def group_by_key(keys: Sequence[SampleKey], rows: Sequence[SampleRow]) -> GroupedRows:
    """Bring a batch's rows together by their keys, in seq order.

    A repetition is kept as well: it may be later than what another instance said after the first.
    """
    first = dict(zip(keys, rows, strict=True))
    more: dict[SampleKey, list[SampleRow]] = {}
    restated: set[SampleKey] = set()
    if len(first) == len(rows):  # as nearly always, once what is known was left out
        return GroupedRows(first, more, restated)
    first.clear()
    for key, row in zip(keys, rows, strict=True):
        known = first.setdefault(key, row)
        if known is row:
            continue
        more.setdefault(key, []).append(row)
        if known.value != row.value:
            restated.add(key)
    return GroupedRows(first, more, restated)
