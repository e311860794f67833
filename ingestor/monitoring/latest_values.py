"""The last values of each ticker, in memory, for the status page. Bounded; fed by the writer once a batch.

What stands here was committed by this run of the daemon. Knows nothing of databases.
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

KEEP = 60  # values of a trace
CAPACITY = 10_000  # traces: some 15 MB
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"  # of a value between the least and the greatest of its trace
# Of thousands of lines: else the event loop would wait for the interpreter, 20 ms and more at a time.
LINES_AT_ONCE = 100
BREATH_SECONDS = 0.0001


# What was committed: ((feed, metric, ticker, user_id), ts_us, value, published_us, received_us, source, seq, row_index)
CommittedRow: TypeAlias = tuple[SeriesKey, int, float, int | None, int, str, int, int]


class ValueWindow:
    """One feed's newest values of one ticker, by the provider's clock. Of several metrics the first that came."""

    __slots__ = ("metric", "received_us", "restated", "rows", "stamps", "values", "version")

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.stamps = array("q")  # ascending, µs since the epoch
        self.values = array("d")
        self.received_us = 0
        self.rows = 0
        self.restated = 0
        self.version = 0

    def take(self, ts_us: int, value: float) -> bool:
        """Put a value into its place, unless all that is kept is newer; whether it says a known ts anew."""
        stamps, values = self.stamps, self.values
        if not stamps or ts_us > stamps[-1]:  # as nearly always
            stamps.append(ts_us)
            values.append(value)
            if len(stamps) > KEEP:
                del stamps[0], values[0]
            return False
        place = bisect_left(stamps, ts_us)
        if stamps[place] == ts_us:
            restated = values[place] != value
            values[place] = value
            return restated
        if place or len(stamps) < KEEP:
            stamps.insert(place, ts_us)
            values.insert(place, value)
        if len(stamps) > KEEP:
            del stamps[0], values[0]
        return False


class ValueLine(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A trace at one moment, as values.json has it: a list. Stamps are milliseconds since the epoch, UTC."""

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
    """All traces. The writer's thread learns, any other may ask."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._traces: dict[tuple[str, str], ValueWindow] = {}  # (feed, ticker), in the order of their making
        self._version = 0
        self._lock = threading.Lock()

    def add_rows(self, rows: Iterable[CommittedRow]) -> None:
        """Take in what was committed."""
        last: SeriesKey | None = None
        with self._lock:
            self._version = version = self._version + 1
            for series, ts_us, value, _, received_us, _, _, _ in rows:
                if series is not last:
                    last, (feed, metric, ticker, user_id) = series, series
                    trace = self._traces.get((feed, ticker)) or self._begin(feed, ticker, metric)
                if trace.metric == metric:
                    if trace.take(ts_us, value) and not user_id:  # else it is what another user says
                        trace.restated += 1
                    trace.rows += 1
                    trace.received_us = received_us
                    trace.version = version

    def changed_since(self, version: int) -> bytes:
        """values.json: the lines that changed after ``version``, and the version that they are of.

        0 gives all, and so does a version that is still to come: it is of another run.
        """
        with self._lock:
            now = self._version
            after = version if version <= now else 0
            changed = [(key, trace) for key, trace in self._traces.items() if trace.version > after]
        lines = []
        for number, (key, trace) in enumerate(changed, 1):
            lines.append(msgspec.json.encode(self._line(*key, trace)))
            if number % LINES_AT_ONCE == 0:
                time.sleep(BREATH_SECONDS)
        return b'{"version":%d,"lines":[%b]}' % (now, b",".join(lines))

    def _line(self, feed: str, ticker: str, trace: ValueWindow) -> ValueLine:
        with self._lock:
            values, ts_us, received_us = trace.values[:], trace.stamps[-1], trace.received_us
            rows, restated = trace.rows, trace.restated
        least, greatest = min(values), max(values)
        low, span = least / 4, greatest / 4 - least / 4  # quarters: the difference of two doubles need not be one
        scale = (len(LEVELS) - 1) / span if span > 1e-300 else 0.0
        return ValueLine(
            feed=feed,
            ticker=ticker,
            metric=trace.metric,
            ts_ms=ts_us // 1000,
            received_ms=received_us // 1000,
            rows=rows,
            restated=restated,
            value=values[-1],
            least=least,
            greatest=greatest,
            levels="".join([LEVELS[int((value / 4 - low) * scale + 0.5)] for value in values]),
        )

    def _begin(self, feed: str, ticker: str, metric: str) -> ValueWindow:
        # The provider names the tickers, so there may be any number; those that speak come back at their next value.
        if len(self._traces) >= self._capacity:
            del self._traces[next(iter(self._traces))]
        trace = self._traces[feed, ticker] = ValueWindow(metric)
        return trace
