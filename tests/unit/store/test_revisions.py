from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.store.write.batch import SampleRow
from ingestor.store.write.revisions import SampleRecord, SampleValue, group_by_key

A, B = 1, 2  # instances
SERIES = ("crowd-sentiment", "crowd_sentiment", "AAPL", "")


def value(
    number: float, *, seq: int = 1, received_us: int | None = None, instance: int = A, source: str = "stream"
) -> SampleValue:
    return SampleValue(number, None, seq if received_us is None else received_us, source, instance, seq)


@pytest.mark.parametrize(
    ("mine", "other", "later"),
    [
        pytest.param(value(1, seq=5, received_us=10), value(2, seq=4, received_us=99), True, id="own clock set back"),
        pytest.param(
            value(1, seq=9, received_us=10, instance=B), value(2, seq=1, received_us=11), False, id="older stamp"
        ),
        pytest.param(
            value(1, seq=1, received_us=12, instance=B), value(2, seq=9, received_us=11), True, id="newer stamp"
        ),
        pytest.param(
            value(1, seq=9, received_us=10, source="snapshot"), value(2, seq=8, received_us=11), False, id="slow REST"
        ),
        pytest.param(value(1, seq=5), value(2, seq=5), True, id="twice in one frame"),
    ],
)
def test_order_of_values(mine: SampleValue, other: SampleValue, later: bool) -> None:
    assert mine.later_than(other) is later


def test_a_later_value_becomes_current_and_the_one_before_a_revision() -> None:
    record = SampleRecord(value(1.0, seq=1))
    assert record.offer(value(2.0, seq=2))
    assert (record.current.value, record.revision) == (2.0, 1)
    assert [(revision, v.value) for revision, v in record.new_revisions] == [(0, 1.0)]


def test_a_late_value_never_becomes_current() -> None:
    record = SampleRecord(value(2.0, received_us=20))
    late = value(1.0, received_us=10, instance=B)
    assert record.offer(late)
    assert (record.current.value, record.revision) == (2.0, 1)
    assert record.new_revisions == [(0, late)]


def test_the_same_late_value_is_recorded_once() -> None:
    record = SampleRecord(value(2.0, received_us=20))
    late = value(1.0, received_us=10, instance=B)
    assert [record.offer(late), record.offer(late)] == [True, False]
    assert record.revision == 1


def test_a_number_may_become_current_again() -> None:
    record = SampleRecord(value(1.0, seq=1))
    assert [record.offer(value(n, seq=seq)) for seq, n in ((2, 2.0), (3, 1.0))] == [True, True]
    assert (record.current.value, record.revision, [v.value for _, v in record.new_revisions]) == (1.0, 2, [1.0, 2.0])


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 50)), min_size=1, unique=True))
def test_whatever_the_order_of_arrival_the_latest_is_current_and_no_number_is_forgotten(
    offers: list[tuple[int, int]],
) -> None:
    values = [value(float(i), seq=seq, received_us=seq, instance=who) for i, (who, seq) in enumerate(offers)]
    record = SampleRecord(values[0])
    for offer in values[1:]:
        record.offer(offer)
    assert record.current == max(values, key=lambda v: (v.received_us, v.instance_id))
    assert record.other_values | {record.current.value} == {v.value for v in values}
    assert [revision for revision, _ in record.new_revisions] == list(range(record.revision))


def test_folding_brings_the_values_of_a_key_together_and_says_which_differ() -> None:
    key, steady = (1, 60), (2, 60)
    given = [(key, 1.0), (key, 1.0), (key, 2.0), (key, 1.0), (steady, 7.0), (steady, 7.0), ((3, 60), 7.0)]
    folded = group_by_key(
        [of for of, _ in given], [SampleRow(SERIES, of[1], number, None, 0, "stream", 1, 0) for of, number in given]
    )
    assert {k: v.value for k, v in folded.first.items()} == {key: 1.0, steady: 7.0, (3, 60): 7.0}
    assert {k: [v.value for v in more] for k, more in folded.repeats.items()} == {key: [1.0, 2.0, 1.0], steady: [7.0]}
    assert folded.restated == {key}
