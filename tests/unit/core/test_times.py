from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.times import split_into_cells, to_datetime, to_sqlite_text

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("from_seconds", "to_seconds", "expected"),
    [
        pytest.param(0, 10, [(0, 10)], id="one whole cell"),
        pytest.param(12, 15, [(1, 3)], id="part of a cell"),
        pytest.param(5, 25, [(0, 5), (1, 10), (2, 5)], id="several cells"),
        pytest.param(-100, 100, [(0, 10), (1, 10), (2, 10)], id="beyond both ends"),
        pytest.param(10, 10, [], id="empty"),
        pytest.param(-20, -10, [], id="before"),
        pytest.param(30, 40, [], id="after"),
    ],
)
def test_split_into_cells(from_seconds: int, to_seconds: int, expected: list[tuple[int, int]]) -> None:
    from_at, to_at = (START + timedelta(seconds=seconds) for seconds in (from_seconds, to_seconds))
    found = split_into_cells(from_at, to_at, start=START, cell_us=10_000_000, cells=3)
    assert [(cell, us / 1_000_000) for cell, us in found] == expected


LAST_US = 253_402_300_799_999_999  # 9999-12-31 23:59:59.999999
# Near each other and round, so that texts of which one begins with the other are common.
_us = st.builds(
    lambda start, number, digits: min(start + number * 10**digits, LAST_US),
    st.sampled_from([-1_000_000, 0, LAST_US - 9_999_999]),
    st.integers(0, 20),
    st.integers(0, 6),
)


@pytest.mark.parametrize(
    ("us", "expected"),
    [
        (0, "1970-01-01 00:00:00"),
        (500_000, "1970-01-01 00:00:00.5"),
        (50_000, "1970-01-01 00:00:00.05"),
        (1_000_010, "1970-01-01 00:00:01.00001"),
        (-1, "1969-12-31 23:59:59.999999"),
        (600_000_000, "1970-01-01 00:10:00"),
    ],
)
def test_sqlite_text_has_a_fraction_only_where_there_is_one(us: int, expected: str) -> None:
    assert to_sqlite_text(us) == expected


@given(_us, _us)
def test_sqlite_texts_compare_like_times(first: int, second: int) -> None:
    texts = [to_sqlite_text(first), to_sqlite_text(second)]
    assert (texts[0] < texts[1], texts[0] == texts[1]) == (first < second, first == second)
    assert datetime.fromisoformat(texts[0]).replace(tzinfo=UTC) == to_datetime(first)
