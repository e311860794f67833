"""Convert times: µs since the epoch inside the program, aware datetimes or SQLite's text at the database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
_MICROSECOND = timedelta(microseconds=1)

_CLOCK = r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{1,6}+0*+)?)?"
_OFFSET = r"Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?"
_TIME = re.compile(rf"\d{{4}}-\d\d-\d\d([T ]{_CLOCK}({_OFFSET})?)?", re.ASCII)


def parse_time(text: str) -> datetime:
    """Read ``2026-01-31T14:05:09.250Z``: a date, or a date and a time of day, in UTC unless it has another offset.

    Seconds, fraction and offset may be missing. Raises ValueError for every other spelling: ``datetime.fromisoformat``
    reads the offset in ``2026-01-31-05:00`` as a time of day, and ``1970010112345`` (milliseconds) as a date.
    """
    if not _TIME.fullmatch(text):
        raise ValueError("neither a date nor a date and a time of day")
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def to_datetime(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def to_optional_datetime(us: int | None) -> datetime | None:
    return None if us is None else to_datetime(us)


def to_us(at: datetime) -> int:
    return (at - EPOCH) // _MICROSECOND


def day_start_us(us: int) -> int:
    """Return the beginning of the UTC day, in µs since the epoch."""
    return us - us % DAY_US


def split_into_cells(
    from_at: datetime, to_at: datetime, *, start: datetime, cell_us: int, cells: int
) -> Iterator[tuple[int, int]]:
    """Yield how many µs of an interval fall into each of the ``cells`` cells from ``start`` that it touches."""
    first_us = max((from_at - start) // _MICROSECOND, 0)
    last_us = min((to_at - start) // _MICROSECOND, cells * cell_us)
    cell = first_us // cell_us
    while first_us < last_us:
        edge_us = min(last_us, (cell + 1) * cell_us)
        yield cell, edge_us - first_us
        first_us, cell = edge_us, cell + 1


def to_sqlite_text(us: int | None) -> str | None:
    """Return ``YYYY-MM-DD HH:MM:SS`` in UTC, the form of a time in our SQLite databases.

    A fraction follows only where there is one, without zeros at its end, so that texts compare like times.
    """
    if us is None:
        return None
    second, rest = divmod(us, 1_000_000)
    day, clock = divmod(second, 86_400)
    text = f"{_text_day(day)} {_text_clock(clock)}"
    return f"{text}.{rest:06}".rstrip("0") if rest else text


@lru_cache(maxsize=1_000)
def _text_day(day: int) -> str:
    return (EPOCH + timedelta(days=day)).date().isoformat()


@lru_cache(maxsize=10_000)
def _text_clock(second: int) -> str:
    return (EPOCH + timedelta(seconds=second)).time().isoformat()
