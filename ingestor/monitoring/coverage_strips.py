"""Coverage of the last day as a strip of cells for each feed: how much of a cell was live, and which state it was in.

The state spans come from the database through a blocking function, which runs in a thread, one call at a time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

import msgspec

from ingestor.core.redaction import redactor
from ingestor.core.threads import start_thread
from ingestor.core.times import split_into_cells
from ingestor.errors import IngestorError

CELL_SECONDS = 600
CELLS = 144
STRIP_DURATION = timedelta(seconds=CELLS * CELL_SECONDS)
MAX_AGE_SECONDS = 10.0
MAX_AGE_EMPTY_SECONDS = 1.0  # while there is nothing to show, because the daemon has just started
REFRESH_PAUSE_FACTOR = 20  # a refresh that took long is repeated after this many times its duration
MAX_STRIPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpan:
    """An interval in which some subscriptions of a feed were in one state."""

    feed: str
    state: str
    from_at: datetime
    to_at: datetime
    subscriptions: int


class CellRun(msgspec.Struct, array_like=True, frozen=True):
    """Adjacent cells that are alike."""

    cells: int
    state: str  # the one with the largest part of what was not live; "live" if all was, "" if nothing was wanted
    percent: int  # of the wanted time that was live, rounded down


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageStrip:
    """The cells of a feed, oldest first, and the totals of its subscriptions' time."""

    feed: str
    wanted_seconds: float
    live_seconds: float
    runs: tuple[CellRun, ...]


def build_strips(spans: Iterable[StateSpan], end: datetime) -> list[CoverageStrip]:
    """Return the strips of all feeds with any wanted time in the day before ``end``, sorted by feed."""
    feeds: dict[str, list[Counter[str]]] = defaultdict(lambda: [Counter() for _ in range(CELLS)])
    start = end - STRIP_DURATION
    for span in spans:
        cells = feeds[span.feed]
        for cell, us in split_into_cells(
            span.from_at, span.to_at, start=start, cell_us=CELL_SECONDS * 1_000_000, cells=CELLS
        ):
            cells[cell][span.state] += us * span.subscriptions
    strips = [_build_strip(feed, cells) for feed, cells in sorted(feeds.items())]
    return [strip for strip in strips if strip.wanted_seconds]


def _build_strip(feed: str, cells: list[Counter[str]]) -> CoverageStrip:
    """Build a strip from the µs by state of each cell."""
    return CoverageStrip(
        feed=feed,
        wanted_seconds=sum(cell.total() for cell in cells) / 1_000_000,
        live_seconds=sum(cell["live"] for cell in cells) / 1_000_000,
        runs=tuple(CellRun(len(list(run)), *summary) for summary, run in groupby(map(_summarize, cells))),
    )


def _summarize(cell: Counter[str]) -> tuple[str, int]:
    wanted, live = cell.total(), cell["live"]
    if not wanted:
        return "", 0
    others = {state: us for state, us in cell.items() if state != "live"}
    return max(others, key=others.__getitem__, default="live"), 100 * live // wanted


class CoverageCache:
    """The body of coverage.json as last read. Reading it while it is old starts a refresh, but does not wait for it."""

    def __init__(self, read: Callable[[datetime], Iterable[StateSpan]]) -> None:
        """``read(since)`` blocks, and may raise any IngestorError."""
        self._read = read
        self._response = _CachedResponse()
        self._refresh_at = 0.0  # time.monotonic()
        self._refreshing = False

    def to_json(self) -> bytes:
        """Return what was last read. Must be called in the event loop; never waits."""
        if not self._refreshing and time.monotonic() >= self._refresh_at:
            self._refreshing = True
            # A daemon thread: the process waits for the loop's executor, and a database may hang for a minute.
            try:
                start_thread(threading.Thread(target=self._refresh, name="coverage", daemon=True))
            except OSError:
                self._refreshing = False  # the next call tries again
        return msgspec.json.encode(self._response)

    def _refresh(self) -> None:
        started = time.monotonic()
        try:
            self._response = _build_response(self._read, datetime.now(UTC))
        except IngestorError as error:
            self._response = replace(self._response, error=redactor.scrub(str(error)))
        finally:
            max_age = MAX_AGE_SECONDS if self._response.strips else MAX_AGE_EMPTY_SECONDS
            self._refresh_at = started + max(max_age, REFRESH_PAUSE_FACTOR * (time.monotonic() - started))
            self._refreshing = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedResponse:
    """The fields of coverage.json. ``as_of`` is None until the first refresh has succeeded."""

    as_of: datetime | None = None
    end_at: datetime | None = None  # of the last cell, which is not over yet
    cell_seconds: int = CELL_SECONDS
    strips: tuple[CoverageStrip, ...] = ()
    more: int = 0  # feeds left out: those with the best coverage
    error: str | None = None


def _build_response(read: Callable[[datetime], Iterable[StateSpan]], now: datetime) -> _CachedResponse:
    end = datetime.fromtimestamp((now.timestamp() // CELL_SECONDS + 1) * CELL_SECONDS, UTC)
    strips = build_strips(read(end - STRIP_DURATION), end)
    worst = sorted(strips, key=lambda strip: strip.live_seconds / strip.wanted_seconds)[:MAX_STRIPS]
    shown = tuple(sorted(worst, key=lambda strip: strip.feed))
    return _CachedResponse(as_of=now, end_at=end, strips=shown, more=len(strips) - len(shown))
