"""Drop repeated warnings and errors from the log: the first is logged at once, the rest once a minute as a count."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator

from ingestor.core.throttle import Throttle

WINDOW_SECONDS = 60.0

# What may differ between two lines that say the same.
_NUMBER = re.compile(r"\b\d+(\.\d+)?\b")
_IGNORED_FIELDS = frozenset({"timestamp", "connection"})

# A line with this field begins an outage: these are rare, and another outage a moment later is news.
_BACKOFF_FIELD = "retry_in_seconds"

# An outage of the provider ends all connections at once: one line for those that fail for the same reason.
_OUTAGE_KINDS = frozenset({"disconnected", "connect_failed"})
_GROUP_FIELDS = frozenset({"path", "example"})


class DuplicateFilter:
    """Takes every record and returns those to log. ``now`` is in seconds, on a clock that never steps back."""

    def __init__(self) -> None:
        self._throttle: Throttle[logging.LogRecord] = Throttle(WINDOW_SECONDS)

    def admit(self, record: logging.LogRecord, now: float) -> Iterator[logging.LogRecord]:
        """Yield the summaries that are due, then the record itself unless it is a repetition."""
        for last, count in self._throttle.due(now):
            yield _summary(last, count)
        fields = record.msg if isinstance(record.msg, dict) else record.__dict__
        is_outage = fields.get(_BACKOFF_FIELD) is not None and fields.get("kind") not in _OUTAGE_KINDS
        exempt = is_outage or not logging.WARNING <= record.levelno < logging.CRITICAL
        if exempt or self._throttle.admit(_key(record), record, now) is not None:
            yield record

    def flush(self) -> list[logging.LogRecord]:
        """Return the summaries of what was dropped so far."""
        return [_summary(last, count) for last, count in self._throttle.flush()]


def _summary(record: logging.LogRecord, count: int) -> logging.LogRecord:
    """Return a copy of the last repetition that says how many were dropped, itself included."""
    summary = copy.copy(record)
    if isinstance(summary.msg, dict):  # made by structlog
        summary.msg = {**summary.msg, "repeated": count}
    else:
        summary.__dict__["repeated"] = count
    return summary


def _key(record: logging.LogRecord) -> str:
    if isinstance(record.msg, dict):
        ignored = _IGNORED_FIELDS | (_GROUP_FIELDS if record.msg.get("kind") in _OUTAGE_KINDS else set())
        fields = ((name, value) for name, value in record.msg.items() if name not in ignored)
        return " ".join(f"{name}={'#' if isinstance(value, int | float) else value}" for name, value in fields)
    error = record.exc_info[1] if record.exc_info else None
    return _NUMBER.sub("#", f"{record.name} {record.levelno} {record.getMessage()} {error!r}")
