"""Rolling windows in a block of payloads: the rows of a series are put one behind the other, and each once.

Each response is a part of the strip of its series, between what stands before and after its rows. That takes a quarter
of the time that JSON of all rows takes, and a tenth of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from ingestor.core.windows import MIN_CHARACTERS, first_ticker

_LEAST_GAIN = 3  # as compressing the whole texts does

# What stands before the rows, the place of the first character of the rows, their number of characters, what stands
# after them.
Place: TypeAlias = tuple[str, int, int, str]


class JoinedWindows(NamedTuple):
    """The text that has the rows of all windows, and the place of each window in it."""

    text: str
    places: list[Place]


def join_windows(bodies: Sequence[str]) -> JoinedWindows | None:
    """Join the rows of texts.

    None if they are few or short, have no rows, or more than a third of them would be left. Also if the rows are not
    ASCII: the view finds a place by bytes, many times as fast as by characters.
    """
    # As a rule, the texts of one origin are alike. Of fewer, more would be left.
    if len(bodies) < _LEAST_GAIN or len(bodies[0]) < MIN_CHARACTERS:
        return None
    strips: dict[str, _Strip] = {}
    found: list[tuple[str, _Strip, int, int, str]] = []
    for body in bodies:
        start, end = body.find("[{") + 1, body.rfind("}]") + 1
        rows = body[start:end] if start < end else ""
        ticker = first_ticker(rows)
        strip = strips.get(ticker) or strips.setdefault(ticker, _Strip())
        found.append((body[:start], strip, strip.add(rows), len(rows), body[start + len(rows) :]))
    kept = sum(strip.size for strip in strips.values())
    around = sum(len(before) + len(after) for before, *_, after in found)
    if not kept or _LEAST_GAIN * (kept + around) > sum(map(len, bodies)):
        return None
    offset = 0
    for strip in strips.values():
        strip.offset, offset = offset, offset + strip.size
    text = "".join([part for strip in strips.values() for part in strip.parts])
    if not text.isascii():
        return None
    return JoinedWindows(text, [(before, strip.offset + at, size, after) for before, strip, at, size, after in found])


def cut_window(text: str, place: Place) -> str:
    """Return the text of a window."""
    before, start, size, after = place
    return f"{before}{text[start : start + size]}{after}"


class _Strip:
    """The rows of one series, in the order in which they were received."""

    __slots__ = ("_last", "offset", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = self.offset = 0
        self._last = ""  # the rows that were added last: the end of the strip

    def add(self, rows: str) -> int:
        """Add the rows that do not follow from the last ones, and return where all of them begin."""
        start = self._last.find(rows[: rows.find("{", 1)])
        known = self._last[start:] if start >= 0 else ""
        if not rows.startswith(known):  # the newest row was restated, or it is no rolling window
            known = ""
        begin = self.size - len(known)
        self.parts.append(rows[len(known) :])
        self.size += len(rows) - len(known)
        self._last = rows
        return begin
