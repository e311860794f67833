from __future__ import annotations

import logging
from typing import Any

import pytest

from ingestor.core.throttle import MAX_KEYS
from ingestor.monitoring.log_dedup import DuplicateFilter


def record(event: str = "disconnected", level: int = logging.WARNING, **fields: Any) -> logging.LogRecord:
    """Make a record as structlog does."""
    message = {"event": event, "timestamp": "now", **fields}
    return logging.LogRecord("ingestor", level, __file__, 1, message, None, None)  # type: ignore[arg-type]


def stdlib(text: str, *args: object, **fields: Any) -> logging.LogRecord:
    """Make a record as the standard library does."""
    record = logging.LogRecord("ingestor.x", logging.ERROR, __file__, 1, text, args, fields.pop("exc_info", None))
    record.__dict__.update(fields)
    return record


def admitted(duplicates: DuplicateFilter, record: logging.LogRecord, now: float) -> list[Any]:
    """Return the event of each line that is logged, with the number of repetitions that it stands for."""
    lines = []
    for line in duplicates.admit(record, now):
        fields = line.msg if isinstance(line.msg, dict) else {"event": line.getMessage(), **line.__dict__}
        lines.append((fields["event"], fields.get("repeated")))
    return lines


def test_repeated_line_is_counted_once_a_minute() -> None:
    duplicates = DuplicateFilter()
    lines = [line for second in range(185) for line in admitted(duplicates, record(connection=f"c{second}"), second)]
    assert lines == [("disconnected", None), ("disconnected", 59), ("disconnected", 60), ("disconnected", 60)]
    assert [summary.msg["repeated"] for summary in duplicates.flush()] == [5]  # type: ignore[index]


def test_line_is_logged_again_after_a_quiet_minute() -> None:
    duplicates = DuplicateFilter()
    assert admitted(duplicates, record(), 0) == [("disconnected", None)]
    assert admitted(duplicates, record(), 30) == []
    # The count does not wait for another repetition: any record brings it along.
    assert admitted(duplicates, record("connected", logging.INFO), 61) == [("disconnected", 1), ("connected", None)]
    assert admitted(duplicates, record(), 130) == [("disconnected", None)]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        pytest.param(record(path="/a"), record(path="/b"), False, id="other path"),
        pytest.param(
            record(path="/a", kind="connect_failed", retry_in_seconds=1.5),
            record(path="/b", kind="connect_failed", retry_in_seconds=2),
            True,
            id="same outage",
        ),
        pytest.param(record(reason="x"), record(reason="y"), False, id="other reason"),
        pytest.param(record(first="/a 6E"), record(first="/a 7E"), False, id="other ticker"),
        pytest.param(record(seconds=3.5, connection="a"), record(seconds=4, connection="b"), True, id="other numbers"),
        pytest.param(stdlib("%d of %s", 3, "x"), stdlib("%d of %s", 4, "x"), True, id="other number as argument"),
        pytest.param(stdlib("%d of %s", 3, "x"), stdlib("%d of %s", 3, "y"), False, id="other text as argument"),
        pytest.param(
            stdlib("failed", exc_info=(ValueError, ValueError("a"), None)),
            stdlib("failed"),
            False,
            id="other error",
        ),
        pytest.param(record(level=logging.INFO), record(level=logging.INFO), False, id="info"),
        pytest.param(record(level=logging.CRITICAL), record(level=logging.CRITICAL), False, id="critical"),
        pytest.param(record(retry_in_seconds=1), record(retry_in_seconds=2), False, id="backoff"),
        pytest.param(
            stdlib("away", retry_in_seconds=1), stdlib("away", retry_in_seconds=2), False, id="backoff, stdlib"
        ),
    ],
)
def test_repetition_may_differ_in_numbers_only(first: logging.LogRecord, second: logging.LogRecord, same: bool) -> None:
    duplicates = DuplicateFilter()
    assert len(admitted(duplicates, first, 0)) == 1
    assert (admitted(duplicates, second, 1) == []) is same


def test_number_of_tracked_lines_is_bounded() -> None:
    duplicates = DuplicateFilter()
    assert sum(len(admitted(duplicates, record(reason="x" * n), 0)) for n in range(3 * MAX_KEYS)) == 3 * MAX_KEYS
    assert len(duplicates._throttle) == MAX_KEYS
    assert len(admitted(duplicates, record(), 60)) == 1
    assert len(duplicates._throttle) == 1
