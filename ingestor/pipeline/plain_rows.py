"""Read plain rows: each has exactly the fields of a row of its feed that ``decoder`` has read before.

This is the fast path of the decoder, and has no rules of its own: what it reads it reads as the decoder does, and what
is not plain it leaves to the decoder, which alone knows why something is rejected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from ingestor.core.entries import SeriesKey
from ingestor.core.times import DAY_US

# (series, ts, value, row index); ts: µs since the epoch (UTC), the provider's bucket
DecodedValue: TypeAlias = tuple[SeriesKey, int, float, int]

REMEMBERED = 20_000  # tickers of a feed, times
REMEMBERED_CHARACTERS = 100  # longer texts from outside are not remembered
BODY_CHARACTERS = 1 << 20  # a longer one may have more values than a frame may have
NUMBER_CHARACTERS = 400  # a longer text is not a number
MINUTE_CHARACTERS = 16  # 2026-11-26T12:34
_Number = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]  # neither infinite nor NaN

V = TypeVar("V")


class Memo(dict[str, V]):
    """Remembers what ``make`` returns for a text. An exception that it raises is not remembered."""

    def __init__(self, make: Callable[[str], V]) -> None:
        self._make = make

    def __missing__(self, text: str) -> V:
        value = self._make(text)
        if len(self) >= REMEMBERED:
            self.clear()
        if len(text) <= REMEMBERED_CHARACTERS:
            self[text] = value
        return value


class PlainTimes(Memo[int]):
    """The times of rows, in µs since the epoch. ``parse`` reads a whole one, and raises for what is not a time."""

    def __init__(self, parse: Callable[[str], int], latest_us: int) -> None:
        super().__init__(self._add_parts)
        self._parse = parse
        self._latest_us = latest_us
        # A stream brings each second once, but the parts of its text again and again.
        self._minutes, self._rests = Memo(self._parse_minute), Memo(self._parse_rest)

    def _add_parts(self, text: str) -> int:
        return self._minutes[text[:MINUTE_CHARACTERS]] + self._rests[text[MINUTE_CHARACTERS:]]

    def _parse_minute(self, text: str) -> int:
        us = self._parse(f"{text}Z")
        if not DAY_US <= us <= self._latest_us - 2 * DAY_US:
            raise ValueError("with another offset, it might be out of range")
        return us

    def _parse_rest(self, text: str) -> int:
        return self._parse(f"1970-01-02T00:00{text}") - DAY_US


class PlainReader:
    """Reads the rows of one feed that have a ts, a ticker and these fields, each with a number, and nothing else."""

    def __init__(self, fields: tuple[str, ...], series_of: Callable[[str], tuple[SeriesKey, ...]], times: PlainTimes):
        """``series_of`` returns the series of a ticker, one for each field, and raises if its name cannot be stored."""
        self.fields = fields
        self._decode = _row_decoder(fields)
        self._series, self._times = Memo(series_of), times

    def read(self, body: str) -> list[DecodedValue] | None:
        """Return the values of all rows of a JSON list, or None if it is anything else, or a row is not plain.

        -0.0 becomes 0.0, as in the decoder.
        """
        try:
            rows = self._decode(body)
            if len(body) > NUMBER_CHARACTERS and not _is_short(body):
                return None
            return self._read_one_value(rows) if len(self.fields) == 1 else self._read_several(rows)
        except Exception:  # whatever it is: the decoder finds out
            return None

    def _read_one_value(self, rows: list[Any]) -> list[DecodedValue]:
        # Not a list comprehension: before Python 3.12 it is a function, and takes half as long as a row.
        series, times, values = self._series, self._times, []
        for index, row in enumerate(rows):
            values.append((series[row.ticker][0], times[row.ts], row.value0 + 0.0, index))
        return values

    def _read_several(self, rows: list[Any]) -> list[DecodedValue]:
        values: list[DecodedValue] = []
        for index, row in enumerate(rows):
            ts, ticker, *numbers = msgspec.structs.astuple(row)
            ts_us = self._times[ts]
            for series, number in zip(self._series[ticker], numbers, strict=True):
                values.append((series, ts_us, number + 0.0, index))
        return values


def _is_short(body: str) -> bool:
    """Whether no number of the body can have more than ``NUMBER_CHARACTERS``: none contains a brace."""
    return len(body) <= BODY_CHARACTERS and max(map(len, body.split("}"))) <= NUMBER_CHARACTERS


@lru_cache(maxsize=100)
def _row_decoder(fields: tuple[str, ...]) -> Callable[[str], list[Any]]:
    """Return a decoder of lists of objects with exactly these keys. A number may be a text."""
    names = {f"value{index}": field for index, field in enumerate(fields)}
    columns = [("ts", str), ("ticker", str), *((name, _Number) for name in names)]
    row = msgspec.defstruct("PlainRow", columns, rename=names, forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(list[row], strict=False).decode  # type: ignore[valid-type]
