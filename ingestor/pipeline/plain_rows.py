"""Read plain rows: each has exactly the fields of a row of its feed that ``decoder`` has read before.

This is the fast path of the decoder, and has no rules of its own: what it reads it reads as the decoder does, and what
is not plain it leaves to the decoder, which alone knows why something is rejected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
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
HOUR_CHARACTERS = 13  # 2026-11-26T12
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


class PlainTimes:
    """Reads the times of rows, in µs since the epoch, as the sum of two parts: the hour, and the rest.

    A stream has each time only once, but its parts again and again. ``parse`` reads a whole time, and raises for a text
    that is none.
    """

    def __init__(self, parse: Callable[[str], int], latest_us: int) -> None:
        self._parse = parse
        self._latest_us = latest_us
        self.hours, self.rests = Memo(self._parse_hour), Memo(self._parse_rest)

    def __getitem__(self, text: str) -> int:
        return self.hours[text[:HOUR_CHARACTERS]] + self.rests[text[HOUR_CHARACTERS:]]

    def _parse_hour(self, text: str) -> int:
        us = self._parse(f"{text}:00Z")
        if not DAY_US <= us <= self._latest_us - 2 * DAY_US:
            raise ValueError("with another offset, it might be out of range")
        return us

    def _parse_rest(self, text: str) -> int:
        return self._parse(f"1970-01-02T00{text}") - DAY_US


class PlainReader:
    """Reads the rows of one feed that have a ts, a ticker and these fields, each with a number, and nothing else."""

    def __init__(self, fields: tuple[str, ...], series_of: Callable[[str], tuple[SeriesKey, ...]], times: PlainTimes):
        """``series_of`` returns the series of a ticker, one for each field, and raises if its name cannot be stored."""
        self.fields = fields
        self._convert, self._decode = _row_decoder(fields)
        self._series, self._times = Memo(series_of), times
        self._add_values = self._add_one_value if len(fields) == 1 else self._add_several

    def read(self, body: str) -> list[DecodedValue] | None:
        """Return the values of all rows of a JSON list, or None if it is anything else, or a row is not plain.

        -0.0 becomes 0.0, as in the decoder.
        """
        if len(body) > NUMBER_CHARACTERS and not is_short(body):
            return None
        values: list[DecodedValue] = []
        try:
            self._add_values(values, self._decode(body), 0)
        except Exception:  # whatever it is: the decoder finds out
            return None
        return values

    def read_single_rows(self, bodies: Sequence[str]) -> list[DecodedValue] | None:
        """Return the value of each body, with its place as row index, or None unless each has one row and one value.

        A body may have ``NUMBER_CHARACTERS``.
        """
        if len(self.fields) > 1:
            return None
        values: list[DecodedValue] = []
        try:
            self._add_values(values, [row for (row,) in map(self._decode, bodies)], 0)
        except Exception:  # whatever it is: each body is read by itself
            return None
        return values

    def read_rows(self, rows: list[Any], start: int) -> list[DecodedValue]:
        """Return the values of rows from number ``start`` on until one is not plain. Their text must be short."""
        values: list[DecodedValue] = []
        plain = map(self._convert, map(rows.__getitem__, range(start, len(rows))))
        with suppress(Exception):  # whatever it is: the decoder finds out
            self._add_values(values, plain, start)
        return values

    def _add_one_value(self, values: list[DecodedValue], rows: Iterable[Any], start: int) -> None:
        # A time in one expression takes 0.2 µs, with a call of ``PlainTimes`` 0.4 µs.
        series, hours, rests = self._series, self._times.hours, self._times.rests
        for index, row in enumerate(rows, start):
            ts = row.ts
            ts_us = hours[ts[:HOUR_CHARACTERS]] + rests[ts[HOUR_CHARACTERS:]]
            values.append((series[row.ticker][0], ts_us, row.value0 + 0.0, index))

    def _add_several(self, values: list[DecodedValue], rows: Iterable[Any], start: int) -> None:
        for index, row in enumerate(rows, start):
            ts, ticker, *numbers = msgspec.structs.astuple(row)
            ts_us = self._times[ts]
            for series, number in zip(self._series[ticker], numbers, strict=True):
                values.append((series, ts_us, number + 0.0, index))


def is_short(body: str) -> bool:
    """Whether no number of the body can have more than ``NUMBER_CHARACTERS``: none contains a brace."""
    return len(body) <= BODY_CHARACTERS and max(map(len, body.split("}"))) <= NUMBER_CHARACTERS


@lru_cache(maxsize=100)
def _row_decoder(fields: tuple[str, ...]) -> tuple[Callable[[Any], Any], Callable[[str], list[Any]]]:
    """Return what reads an object with exactly these keys, and what reads a text with a list of them.

    A number may be a text.
    """
    names = {f"value{index}": field for index, field in enumerate(fields)}
    columns = [("ts", str), ("ticker", str), *((name, _Number) for name in names)]
    row = msgspec.defstruct("PlainRow", columns, rename=names, forbid_unknown_fields=True, gc=False)
    decode = msgspec.json.Decoder(list[row], strict=False).decode  # type: ignore[valid-type]
    return partial(msgspec.convert, type=row, strict=False), decode
