"""Cache the values that each connection delivered lately, so that known rows of a window are not written repeatedly.

Nearly every row of a response was in the response before. A value is left out only if the same connection delivered it
before, and no connection has delivered another one since. The values of a new connection must be compared with the
database, where another instance may have written a value that came over neither. For the same reason cached values
expire. ``read_ahead.ReadAhead`` has the rule of when the content is valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ingestor.core.entries import SeriesKey
from ingestor.core.windows import MIN_CHARACTERS, first_ticker
from ingestor.pipeline.plain_rows import DecodedValue, PlainReader
from ingestor.pipeline.windows import MAX_CHARACTERS, KnownWindow, are_window

CAPACITY = 50_000  # values of a generation: some 5 MB, and the windows of 800 tickers
GENERATION_SECONDS = 300.0  # a value expires after one to two generations

WINDOW_CHARACTERS = 8 << 20  # of all windows
CONNECTIONS = 4  # of a series: a connection and its replacement, for two paths that deliver the same feed

# The number of known rows that a response begins with, the values of its other rows, and the new ones among these.
PlainResponse: TypeAlias = tuple[int, list[DecodedValue], list[DecodedValue]]
_Values: TypeAlias = dict[int, float]  # ts → value


class _KnownValues:
    """The values of a series that a connection has delivered, in two generations."""

    __slots__ = ("by_connection", "old", "window", "young")

    def __init__(self, by_connection: dict[str, _KnownValues]) -> None:
        self.by_connection = by_connection  # all connections of this series
        self.young: _Values = {}
        self.old: _Values = {}
        self.window: KnownWindow | None = None  # of values that are all here

    def discard(self, ts_us: int) -> None:
        """Remove a value, if there is one, and the window that contains it."""
        self.young.pop(ts_us, None)
        self.old.pop(ts_us, None)
        self.forget_window()

    def forget_window(self) -> None:
        if self.window is not None:
            self.window.forget()
            self.window = None


class RecentValueCache:
    """Two generations of values: new values go into the young one, lookups search both, the old one expires whole."""

    def __init__(self, capacity: int = CAPACITY, generation_seconds: float = GENERATION_SECONDS) -> None:
        self._capacity = capacity
        self._generation_seconds = generation_seconds
        self._rotated_at = 0.0
        self._by_series: dict[SeriesKey, dict[str, _KnownValues]] = {}
        self.clear()

    def filter_new(self, values: Iterable[DecodedValue], connection: str) -> list[DecodedValue]:
        """Return the values that ``connection`` did not deliver before, or not last, and cache them."""
        new: list[DecodedValue] = []
        last: SeriesKey | None = None
        by_series = self._by_connection.get(connection) or self._by_connection.setdefault(connection, {})
        for decoded in values:
            series, ts_us, value, _ = decoded
            if series is not last:  # most responses have one series
                last, known = series, by_series.get(series) or self._add(connection, series)
                young, old, is_shared = known.young, known.old, len(known.by_connection) > 1
            cached = young.get(ts_us)
            if cached is None and old:
                cached = old.get(ts_us)
            if cached == value:
                continue
            if cached is not None:
                known.discard(ts_us)
            young[ts_us] = value
            if is_shared:
                self._discard_others(series, ts_us, value)
            new.append(decoded)
        self._count += len(new)
        return new

    def read_new(self, reader: PlainReader, body: str, connection: str) -> PlainResponse | None:
        """Read a response that ``connection`` received, or return None if its rows are not plain."""
        if not MIN_CHARACTERS < len(body) < MAX_CHARACTERS:
            values = reader.read(body)
            return None if values is None else (0, values, self.filter_new(values, connection))
        key = connection, first_ticker(body)
        window = self._windows.get(key)
        if window and (found := window.read(reader, body)):
            known_rows, values = found
            new = self.filter_new(values, connection)
            window.replace(body, known_rows, values)
            self._by_connection[connection][values[0][0]].window = window
            return known_rows, values, new
        values = reader.read(body)
        if values is None:
            return None
        new = self.filter_new(values, connection)
        if len(new) < len(values) and are_window(body, values, values[0][0], -1):
            self._remember(key, reader, body, values)
        return 0, values, new

    def _remember(self, key: tuple[str, str], reader: PlainReader, body: str, values: list[DecodedValue]) -> None:
        known = self._by_connection[key[0]][values[0][0]]
        known.forget_window()
        self._window_characters += len(body)
        if self._window_characters > WINDOW_CHARACTERS:
            for window in self._windows.values():
                window.forget()  # their values refer to them, too
            self._windows.clear()
            self._window_characters = len(body)
        known.window = self._windows[key] = KnownWindow(reader, body, values)

    def _add(self, connection: str, series: SeriesKey) -> _KnownValues:
        """Add a connection to those of a series, at the expense of the one that was added first."""
        by_connection = self._by_series.setdefault(series, {})
        if len(by_connection) >= CONNECTIONS:
            first = next(iter(by_connection))
            by_connection.pop(first).forget_window()
            del self._by_connection[first][series]
        known = by_connection[connection] = self._by_connection[connection][series] = _KnownValues(by_connection)
        return known

    def discard_others(self, values: Iterable[DecodedValue]) -> None:
        """Remove the values that differ from these, which came over no connection."""
        for series, ts_us, value, _ in values:
            self._discard_others(series, ts_us, value)

    def _discard_others(self, series: SeriesKey, ts_us: int, value: float) -> None:
        for known in self._by_series.get(series, {}).values():
            if known.young.get(ts_us, value) != value or known.old.get(ts_us, value) != value:
                known.discard(ts_us)

    def discard(self, keys: Iterable[tuple[SeriesKey, int]]) -> None:
        """Remove the values of these (series, ts)."""
        for series, ts_us in keys:
            for known in self._by_series.get(series, {}).values():
                known.discard(ts_us)

    _window_characters: int

    def clear(self) -> None:
        for by_connection in self._by_series.values():
            by_connection.clear()  # it refers to itself, and Python would find that late: 0.7 MB/s at 5,000 events/s
        self._by_connection: dict[str, dict[SeriesKey, _KnownValues]] = {}
        self._by_series = {}
        self._windows: dict[tuple[str, str], KnownWindow] = {}
        self._window_characters = 0
        self._count = 0

    def rotate(self, now_seconds: float) -> None:
        """Begin another generation if the young one is full, or has lasted long enough."""
        if self._count >= self._capacity or now_seconds - self._rotated_at >= self._generation_seconds:
            before = self._by_connection
            self.clear()
            for connection, by_series in before.items():
                for series, known in by_series.items():
                    if known.young:
                        self._by_connection.setdefault(connection, {})
                        self._add(connection, series).old = known.young
            self._rotated_at = now_seconds

    def snapshot(self) -> dict[tuple[str, SeriesKey, int], float]:
        """Return every cached value by connection, series and ts."""
        return {
            (connection, series, ts_us): value
            for connection, by_series in self._by_connection.items()
            for series, known in by_series.items()
            for values in (known.old, known.young)
            for ts_us, value in values.items()
        }
