"""The latest values of each ticker in memory, for the status page. The writer adds every batch that it committed.

Bounded. Covers this run of the daemon only; knows nothing of databases.
"""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from ingestor.core.entries import SeriesKey

WINDOW_VALUES = 60  # that are shown
MAX_VALUES = 80  # that are held: to remove the oldest with each row would take 0.1 µs
MAX_WINDOWS = 10_000  # some 22 MB
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"  # the digits by which a window's values are scaled
# Encoding thousands of lines at once would keep the event loop waiting for the interpreter lock, 20 ms and more.
LINES_PER_SLICE = 100
SLICE_PAUSE_SECONDS = 0.0001


# A committed row: (series, ts_us, value, published_us, received_us, source, seq, row_index)
CommittedRow: TypeAlias = tuple[SeriesKey, int, float, int | None, int, str, int, int]


class ValueWindow:
    """The newest values of one ticker in one feed, by the provider's clock. Only the metric that came first is kept."""

    __slots__ = ("metric", "received_us", "restated", "rows", "stamps", "values", "version")

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.stamps = array("q")  # ascending, µs since the epoch
        self.values = array("d")
        self.received_us = 0
        self.rows = 0
        self.restated = 0
        self.version = 0

    def insert(self, ts_us: int, value: float) -> bool:
        """Insert a value that is not the newest. Return whether it restates one."""
        stamps, values = self.stamps, self.values
        index = bisect_left(stamps, ts_us)
        if stamps[index] == ts_us:
            restated = values[index] != value
            values[index] = value
            return restated
        stamps.insert(index, ts_us)
        values.insert(index, value)
        return False

    def trim(self) -> None:
        del self.stamps[:-WINDOW_VALUES], self.values[:-WINDOW_VALUES]


class ValueLine(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A line of values.json, encoded as a list. Stamps are milliseconds since the epoch, UTC."""

    feed: str
    ticker: str
    metric: str
    ts_ms: int
    received_ms: int
    rows: int
    restated: int
    value: float
    least: float
    greatest: float
    levels: str  # one character of LEVELS for each value, the newest last


class LatestValues:
    """The windows of all tickers. The writer's thread adds rows; any thread may read."""

    def __init__(self, max_windows: int = MAX_WINDOWS) -> None:
        self._max_windows = max_windows
        self._windows: dict[tuple[str, str], ValueWindow] = {}  # (feed, ticker), the oldest first
        self._version = 0
        self._lock = threading.Lock()

    def add_rows(self, rows: Iterable[CommittedRow]) -> None:
        """Add the rows of a committed batch."""
        last: SeriesKey | None = None
        with self._lock:
            self._version = version = self._version + 1
            for series, ts_us, value, _, received_us, _, _, _ in rows:
                if series is not last:
                    last, (feed, metric, ticker, user_id) = series, series
                    window = self._windows.get((feed, ticker)) or self._add_window(feed, ticker, metric)
                    stamps, is_shown = window.stamps, window.metric == metric
                if not is_shown:
                    continue
                if not stamps or ts_us > stamps[-1]:  # nearly always
                    stamps.append(ts_us)
                    window.values.append(value)
                elif window.insert(ts_us, value) and not user_id:  # the values of different users do not restate
                    window.restated += 1
                if len(stamps) > MAX_VALUES:
                    window.trim()
                window.rows += 1
                window.received_us = received_us
                window.version = version

    def changed_since(self, version: int) -> bytes:
        """Return values.json: the lines that changed after ``version``, and the current version.

        All lines are returned for 0, and for a version that lies ahead because it is from another run.
        """
        with self._lock:
            current = self._version
            after = version if version <= current else 0
            changed = [(key, window) for key, window in self._windows.items() if window.version > after]
        lines = []
        for number, (key, window) in enumerate(changed, 1):
            lines.append(msgspec.json.encode(self._line(*key, window)))
            if number % LINES_PER_SLICE == 0:
                time.sleep(SLICE_PAUSE_SECONDS)
        return b'{"version":%d,"lines":[%b]}' % (current, b",".join(lines))

    def _line(self, feed: str, ticker: str, window: ValueWindow) -> ValueLine:
        with self._lock:
            values, ts_us, received_us = window.values[-WINDOW_VALUES:], window.stamps[-1], window.received_us
            rows, restated = window.rows, window.restated
        least, greatest = min(values), max(values)
        low, span = least / 4, greatest / 4 - least / 4  # quarters, because the difference of two doubles may overflow
        scale = (len(LEVELS) - 1) / span if span > 1e-300 else 0.0
        levels = "".join([LEVELS[int((value / 4 - low) * scale + 0.5)] for value in values])
        stamps_ms = ts_us // 1000, received_us // 1000
        return ValueLine(feed, ticker, window.metric, *stamps_ms, rows, restated, values[-1], least, greatest, levels)

    def _add_window(self, feed: str, ticker: str, metric: str) -> ValueWindow:
        # The provider names the tickers, so their number has no bound. An evicted one returns with its next value.
        if len(self._windows) >= self._max_windows:
            del self._windows[next(iter(self._windows))]
        window = self._windows[feed, ticker] = ValueWindow(metric)
        return window
