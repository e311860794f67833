"""Rolling windows: keep the text of the last response for a series, and decode only the new rows of the next response.

The rows that were in the response before are compared as text, in one step. Only the newest row of that response, which
may be restated, and the rows after it are decoded. That takes 5 µs; decoding all rows takes 37 µs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ingestor.core.entries import SeriesKey
from ingestor.pipeline.plain_rows import DecodedValue, PlainReader

MAX_CHARACTERS = 1 << 18


class KnownWindow:
    """All rows of a response except the last: plain, of one series, in order of time. All their values are cached.

    No string contains a brace, so each opening brace begins a row.
    """

    __slots__ = ("_body", "_end", "_last_us", "_reader", "_rows", "_series")

    def __init__(self, reader: PlainReader, body: str, values: Sequence[DecodedValue]) -> None:
        """``values``: those of the whole body, for which ``are_window`` holds."""
        self._reader = reader
        self._series = values[0][0]
        self._last_us = 0
        self.replace(body, 0, values)

    def replace(self, body: str, known_rows: int, values: Sequence[DecodedValue]) -> None:
        """Hold the rows of the next response, once the values that ``read`` returned for it are cached."""
        self._body, self._end = body, body.rfind("{")
        self._rows = known_rows + len(values) - 1
        if len(values) > 1:
            self._last_us = values[-2][1]

    def forget(self) -> None:
        self._body, self._end = "", 0

    def read(self, reader: PlainReader, body: str) -> tuple[int, list[DecodedValue]] | None:
        """Return the number of known rows that a response begins with, and the values of its other rows.

        None if the response does not continue this window.
        """
        before, end = self._body, self._end
        start = before.find(body[1 : body.find("{", 2)], 1, end)
        if start < 0 or before[start] != "{" or body[0] != "[" or reader is not self._reader:
            return None
        known = before[start:end]  # {…},{…},
        if not body.startswith(known, 1):
            return None
        others = "[" + body[1 + len(known) :]
        values = reader.read(others)
        if not values or not are_window(others, values, self._series, self._last_us):
            return None
        return self._rows - before.count("{", 0, start), values


def are_window(body: str, values: Sequence[DecodedValue], series: SeriesKey, after_us: int) -> bool:
    """Return whether the rows of a body are of one series, in order of time, and each time occurs once."""
    for other, ts_us, _, _ in values:
        if other is not series or ts_us <= after_us:
            return False
        after_us = ts_us
    return body.count("{") == len(values)
