from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.config.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h30m5s250ms", 5405.25),
        ("7d", 604_800),
        ("2w", 1_209_600),
    ],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert re.search(DURATION_PATTERN, text), "the schema's pattern rejects what the program accepts"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("60", 'add one of ms, s, m, h, d: "60s" is 60 seconds', id="no unit"),
        pytest.param("1.5", "has no unit", id="a fraction without unit"),
        pytest.param("30m1h", "largest first", id="units out of order"),
        pytest.param("1h1h", "and each once", id="a unit twice"),
        pytest.param("5 min", "not a duration", id="another spelling"),
        pytest.param("-5s", "not a duration", id="negative"),
        pytest.param("5H", "not a duration", id="capital"),
        pytest.param("1e3s", "not a duration", id="exponent"),
        pytest.param("٣s", "not a duration", id="digits of another script"),
        pytest.param("", "not a duration", id="empty"),
        pytest.param("9" * 400 + "s", "not a duration", id="absurd"),
        pytest.param("5s\n", "not a duration", id="line break"),
    ],
)
def test_invalid_duration_is_rejected_with_remedy(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.02, "20ms"), (5400, "1h30m"), (86_400, "1d"), (0.0015, "1.5ms")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**12))
def test_duration_round_trip(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("7B", 7),
        ("64KiB", 65_536),
        ("1GiB", 1 << 30),
        ("10MB", 10**7),
        ("1.5KiB", 1536),
        ("2TB", 2 * 10**12),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert re.search(SIZE_PATTERN, text), "the schema's pattern rejects what the program accepts"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("1024", "add one of B, KiB, MiB, GiB", id="no unit"),
        pytest.param("1G", "not a size", id="ambiguous"),
        pytest.param("1gib", "not a size", id="small letters"),
        pytest.param("-1MB", "not a size", id="negative"),
    ],
)
def test_invalid_size_is_rejected_with_remedy(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_size(text)


@given(st.integers(min_value=0, max_value=10**14))
def test_size_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size
