"""Warnings and errors that repeat: the first is told at once, the others are counted and told once a minute. Pure."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

WINDOW_SECONDS = 60.0
REMEMBERED = 1000  # different ones in a minute; what comes on top is told as it comes

# What differs from one to the next though it says the same.
_NUMBER = re.compile(r"\b\d+(\.\d+)?\b")
_OF_ONE = frozenset({"timestamp", "connection"})

# Who says when it tries again goes by a backoff of its own, and each step of it is news.
_PACED = "retry_in_seconds"


@dataclass(slots=True)
class _SeenLine:
    """What was told at a moment, and what came since."""

    told_at: float  # seconds
    more: int = 0
    last: logging.LogRecord | None = None  # of those that came since


class DuplicateFilter:
    """Takes every record, and gives back those to be told. ``now``: seconds of a clock that does not step."""

    def __init__(self) -> None:
        self._seen: dict[str, _SeenLine] = {}  # the longest ago first

    def admit(self, record: logging.LogRecord, now: float) -> Iterator[logging.LogRecord]:
        """The sums that are due by now, and the record itself if it is no repetition."""
        yield from self._sums(now - WINDOW_SECONDS)
        if not logging.WARNING <= record.levelno < logging.CRITICAL or _field(record, _PACED) is not None:
            yield record
            return
        key = _key(record)
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) < REMEMBERED:
                self._seen[key] = _SeenLine(now)
            yield record
        else:
            seen.more, seen.last = seen.more + 1, record

    def rest(self) -> Iterator[logging.LogRecord]:
        """The sums so far: nothing comes any more."""
        yield from self._sums(float("inf"))

    def _sums(self, until: float) -> Iterator[logging.LogRecord]:
        for key in list(takewhile(lambda key: self._seen[key].told_at <= until, self._seen)):
            seen = self._seen.pop(key)
            if seen.last is not None:
                self._seen[key] = _SeenLine(until + WINDOW_SECONDS)
                yield _sum(seen.last, seen.more)


def _sum(record: logging.LogRecord, count: int) -> logging.LogRecord:
    """The last of them, with how many came since the one before it was told."""
    told = copy.copy(record)
    if isinstance(told.msg, dict):  # structlog's
        told.msg = {**told.msg, "repeated": count}
    else:
        told.__dict__["repeated"] = count
    return told


def _key(record: logging.LogRecord) -> str:
    if isinstance(record.msg, dict):
        return " ".join(f"{name}={_same(value)}" for name, value in record.msg.items() if name not in _OF_ONE)
    error = record.exc_info[1] if record.exc_info else None
    return _NUMBER.sub("#", f"{record.name} {record.levelno} {record.getMessage()} {error!r}")


def _same(value: object) -> object:
    return "#" if isinstance(value, int | float) else value


def _field(record: logging.LogRecord, name: str) -> object:
    return record.msg.get(name) if isinstance(record.msg, dict) else record.__dict__.get(name)
