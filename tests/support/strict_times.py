"""A strict reader of times, which shares no code with the decoder's."""

from __future__ import annotations

import re
from calendar import timegm

_GRAMMAR = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,6})0*)?)?"
    r"(Z|([+-])([0-9]{2}):?([0-9]{2})?)?)?"
)
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_LAST = 253_370_764_800_000_000  # 9999-01-01, µs


def strict_us(text: str) -> int | None:
    """Return the µs since the epoch that a date and time means beyond doubt, UTC without an offset; else None."""
    found = _GRAMMAR.fullmatch(text)
    if found is None or re.search(r"[+-][0-9]{2}:$", text):
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = _DAYS[month - 1] + (month == 2 and leap) if 1 <= month <= 12 else 0
    offset_hours, offset_minutes = int(found[10] or 0), int(found[11] or 0)
    if year == 0 or not 1 <= day <= days or max(hour, offset_hours) > 23 or max(minute, second, offset_minutes) > 59:
        return None
    offset = (offset_hours * 60 + offset_minutes) * 60 * (-1 if found[9] == "-" else 1)
    seconds = timegm((year, month, day, hour, minute, second)) - offset
    us = seconds * 1_000_000 + int((found[7] or "").ljust(6, "0"))
    return us if 0 <= us <= _LAST else None
