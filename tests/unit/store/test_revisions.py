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
    ("candidate", "other", "later"),
    [
        pytest.param(
            value(1, seq=5, received_us=10), value(2, seq=4, received_us=99), True, id="clock of the instance set back"
        ),
        pytest.param(
            value(1, seq=9, received_us=10, instance=B), value(2, seq=1, received_us=11), False, id="older stamp"
        ),
        pytest.param(
            value(1, seq=1, received_us=12, instance=B), value(2, seq=9, received_us=11), True, id="newer stamp"
        ),
        pytest.param(
            value(1, seq=9, received_us=10, source="snapshot"),
            value(2, seq=8, received_us=11),
            False,
            id="REST request sent earlier",
        ),
        pytest.param(value(1, seq=5), value(2, seq=5), True, id="same frame"),
    ],
)
def test_later_than(candidate: SampleValue, other: SampleValue, later: bool) -> None:
    assert candidate.later_than(other) is later


def test_later_value_becomes_current() -> None:
    record = SampleRecord(value(1.0, seq=1))
    assert record.offer(value(2.0, seq=2))
    assert (record.current.value, record.revision) == (2.0, 1)
    assert [(revision, v.value) for revision, v in record.new_revisions] == [(0, 1.0)]


def test_late_value_becomes_revision() -> None:
    record = SampleRecord(value(2.0, received_us=20))
    late = value(1.0, received_us=10, instance=B)
    assert record.offer(late)
    assert (record.current.value, record.revision) == (2.0, 1)
    assert record.new_revisions == [(0, late)]


def test_repeated_late_value_is_recorded_once() -> None:
    record = SampleRecord(value(2.0, received_us=20))
    late = value(1.0, received_us=10, instance=B)
    assert [record.offer(late), record.offer(late)] == [True, False]
    assert record.revision == 1


def test_earlier_value_may_become_current_again() -> None:
    record = SampleRecord(value(1.0, seq=1))
    assert [record.offer(value(n, seq=seq)) for seq, n in ((2, 2.0), (3, 1.0))] == [True, True]
    assert (record.current.value, record.revision, [v.value for _, v in record.new_revisions]) == (1.0, 2, [1.0, 2.0])


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 50)), min_size=1, unique=True))
def test_latest_value_is_current_in_any_order_of_arrival(
    offers: list[tuple[int, int]],
) -> None:
    values = [value(float(i), seq=seq, received_us=seq, instance=instance) for i, (instance, seq) in enumerate(offers)]
    record = SampleRecord(values[0])
    for offer in values[1:]:
        record.offer(offer)
    assert record.current == max(values, key=lambda v: (v.received_us, v.instance_id))
    assert record.other_values | {record.current.value} == {v.value for v in values}
    assert [revision for revision, _ in record.new_revisions] == list(range(record.revision))


def test_group_by_key_separates_repeats_and_restated_keys() -> None:
    key, steady = (1, 60), (2, 60)
    given = [(key, 1.0), (key, 1.0), (key, 2.0), (key, 1.0), (steady, 7.0), (steady, 7.0), ((3, 60), 7.0)]
    grouped = group_by_key(
        [key for key, _ in given],
        [SampleRow(SERIES, key[1], number, None, 0, "stream", 1, 0) for key, number in given],
    )
    assert {k: v.value for k, v in grouped.first.items()} == {key: 1.0, steady: 7.0, (3, 60): 7.0}
    assert {k: [v.value for v in repeats] for k, repeats in grouped.repeats.items()} == {
        key: [1.0, 2.0, 1.0],
        steady: [7.0],
    }
    assert grouped.restated == {key}
