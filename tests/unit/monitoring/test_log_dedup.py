from __future__ import annotations

import logging
from typing import Any

import pytest

from ingestor.core.throttle import MAX_KEYS
from ingestor.monitoring.log_dedup import DuplicateFilter


def record(event: str = "disconnected", level: int = logging.WARNING, **fields: Any) -> logging.LogRecord:
    """As structlog makes it."""
    said = {"event": event, "timestamp": "now", **fields}
    return logging.LogRecord("ingestor", level, __file__, 1, said, None, None)  # type: ignore[arg-type]


def plain(text: str, *args: object, **fields: Any) -> logging.LogRecord:
    """As the standard library makes it."""
    made = logging.LogRecord("ingestor.x", logging.ERROR, __file__, 1, text, args, fields.pop("exc_info", None))
    made.__dict__.update(fields)
    return made


def told(repeats: DuplicateFilter, one: logging.LogRecord, now: float) -> list[Any]:
    """What is told: its event, and how many it stands for."""
    found = []
    for each in repeats.admit(one, now):
        fields = each.msg if isinstance(each.msg, dict) else {"event": each.getMessage(), **each.__dict__}
        found.append((fields["event"], fields.get("repeated")))
    return found


def test_what_repeats_each_second_is_told_once_a_minute_with_its_count() -> None:
    repeats = DuplicateFilter()
    lines = [line for second in range(185) for line in told(repeats, record(connection=f"c{second}"), second)]
    assert lines == [("disconnected", None), ("disconnected", 59), ("disconnected", 60), ("disconnected", 60)]
    assert [one.msg["repeated"] for one in repeats.flush()] == [5]  # type: ignore[index]


def test_after_a_quiet_minute_it_is_news_again() -> None:
    repeats = DuplicateFilter()
    assert told(repeats, record(), 0) == [("disconnected", None)]
    assert told(repeats, record(), 30) == []
    # The count is not held back until it comes again: whatever comes next brings it along.
    assert told(repeats, record("connected", logging.INFO), 61) == [("disconnected", 1), ("connected", None)]
    assert told(repeats, record(), 130) == [("disconnected", None)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(record(path="/a"), record(path="/b"), False, id="of two paths"),
        pytest.param(record(reason="x"), record(reason="y"), False, id="for two reasons"),
        pytest.param(record(first="/a 6E"), record(first="/a 7E"), False, id="of two tickers"),
        pytest.param(
            record(seconds=3.5, connection="a"), record(seconds=4, connection="b"), True, id="in numbers only"
        ),
        pytest.param(plain("%d of %s", 3, "x"), plain("%d of %s", 4, "x"), True, id="with arguments"),
        pytest.param(plain("%d of %s", 3, "x"), plain("%d of %s", 3, "y"), False, id="with another text"),
        pytest.param(plain("failed", exc_info=(ValueError, ValueError("a"), None)), plain("failed"), False, id="error"),
        pytest.param(record(level=logging.INFO), record(level=logging.INFO), False, id="what is no warning"),
        pytest.param(record(level=logging.CRITICAL), record(level=logging.CRITICAL), False, id="what is critical"),
        pytest.param(record(retry_in_seconds=1), record(retry_in_seconds=2), False, id="steps of a backoff"),
        pytest.param(plain("away", retry_in_seconds=1), plain("away", retry_in_seconds=2), False, id="its steps too"),
    ],
)
def test_what_counts_as_the_same(one: logging.LogRecord, other: logging.LogRecord, same: bool) -> None:
    repeats = DuplicateFilter()
    assert len(told(repeats, one, 0)) == 1
    assert (told(repeats, other, 1) == []) is same


def test_however_many_different_ones_there_are_they_are_told_and_not_all_remembered() -> None:
    repeats = DuplicateFilter()
    assert sum(len(told(repeats, record(reason="x" * n), 0)) for n in range(3 * MAX_KEYS)) == 3 * MAX_KEYS
    assert len(repeats._throttle) == MAX_KEYS
    assert len(told(repeats, record(), 60)) == 1
    assert len(repeats._throttle) == 1
