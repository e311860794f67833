"""The last day of each feed, as a strip of cells: was it listened to, and if not, in which state was it?

The spans come from the database, by a function that blocks; it is called in a thread of its own, one at a time.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

import msgspec

from ingestor.core.redaction import redactor
from ingestor.errors import IngestorError

CELL_SECONDS = 600
CELLS = 144
FRESH_SECONDS = 10.0
EMPTY_SECONDS = 1.0  # the same while there is nothing to show: the daemon has just begun
REST = 20  # times as long as it took to read, before it is read again
STRIPS = 60  # feeds that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpan:
    """Some subscriptions of a feed were in a state from then until then."""

    feed: str
    state: str
    from_at: datetime
    to_at: datetime
    subscriptions: int


class CellRun(msgspec.Struct, array_like=True, frozen=True):
    """Like cells next to each other."""

    cells: int
    state: str  # the one that took most of what was not live; "live", or "" where nothing is known
    percent: int  # of the wanted time that was live, rounded down


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageStrip:
    """A feed's cells, the oldest first, and how much of its subscriptions' time was live in all of them."""

    feed: str
    wanted_seconds: float
    live_seconds: float
    runs: tuple[CellRun, ...]


def strips(spans: Iterable[StateSpan], end: datetime) -> list[CoverageStrip]:
    """The CELLS up to ``end`` of every feed, by name."""
    feeds: dict[str, _Cells] = defaultdict(_Cells)
    start = end - timedelta(seconds=CELLS * CELL_SECONDS)
    for span in spans:
        first = max((span.from_at - start).total_seconds(), 0.0)
        last = min((span.to_at - start).total_seconds(), CELLS * CELL_SECONDS)
        feeds[span.feed].add(span.state, first, last, span.subscriptions)
    made = [cells.strip(feed) for feed, cells in sorted(feeds.items())]
    return [strip for strip in made if strip.wanted_seconds]


class _Cells:
    """Seconds by state in each cell."""

    def __init__(self) -> None:
        self._cells: list[dict[str, float]] = [{} for _ in range(CELLS)]

    def add(self, state: str, first: float, last: float, times: int) -> None:
        number = int(first // CELL_SECONDS)
        while first < last:
            edge = min(last, (number + 1) * CELL_SECONDS)
            cell = self._cells[number]
            cell[state] = cell.get(state, 0.0) + (edge - first) * times
            first, number = edge, number + 1

    def strip(self, feed: str) -> CoverageStrip:
        told = [_told(cell) for cell in self._cells]
        return CoverageStrip(
            feed=feed,
            wanted_seconds=sum(sum(cell.values()) for cell in self._cells),
            live_seconds=sum(cell.get("live", 0.0) for cell in self._cells),
            runs=tuple(CellRun(len(list(like)), *one) for one, like in groupby(told)),
        )


def _told(cell: dict[str, float]) -> tuple[str, int]:
    wanted, live = sum(cell.values()), cell.get("live", 0.0)
    if not wanted:
        return "", 0
    others = {state: seconds for state, seconds in cell.items() if state != "live" and seconds > 0}
    return max(others, key=others.__getitem__, default="live"), int(100 * live / wanted)


class CoverageCache:
    """coverage.json, as it was read last. Who asks for what is old has it read anew, and is not kept waiting."""

    def __init__(self, read: Callable[[datetime], Iterable[StateSpan]]) -> None:
        """``read(since)`` blocks, and raises IngestorErrors."""
        self._read = read
        self._told = _CachedResponse()
        self._due = 0.0  # time.monotonic()
        self._reading = False

    def to_json(self) -> bytes:
        """What is known now. Called in the event loop; never waits."""
        if not self._reading and time.monotonic() >= self._due:
            self._reading = True
            # The end of the process would wait for the loop's own threads, and a database may hang for a minute.
            threading.Thread(target=self._refresh, name="coverage", daemon=True).start()
        return msgspec.json.encode(self._told)

    def _refresh(self) -> None:
        began = time.monotonic()
        try:
            self._told = _tell(self._read, datetime.now(UTC))
        except IngestorError as error:
            self._told = replace(self._told, error=redactor.scrub(str(error)))
        finally:
            took = time.monotonic() - began
            self._due = began + max(FRESH_SECONDS if self._told.strips else EMPTY_SECONDS, REST * took)
            self._reading = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedResponse:
    """What coverage.json says. Without ``as_of`` nothing has been read yet."""

    as_of: datetime | None = None
    end_at: datetime | None = None  # of the last cell, which is not over yet
    cell_seconds: int = CELL_SECONDS
    strips: tuple[CoverageStrip, ...] = ()
    more: int = 0  # feeds that are not among the strips: those with the least that was missed
    error: str | None = None


def _tell(read: Callable[[datetime], Iterable[StateSpan]], now: datetime) -> _CachedResponse:
    end = datetime.fromtimestamp((now.timestamp() // CELL_SECONDS + 1) * CELL_SECONDS, UTC)
    found = strips(read(end - timedelta(seconds=CELLS * CELL_SECONDS)), end)
    worst = sorted(found, key=lambda strip: strip.live_seconds / strip.wanted_seconds)[:STRIPS]
    shown = tuple(sorted(worst, key=lambda strip: strip.feed))
    return _CachedResponse(as_of=now, end_at=end, strips=shown, more=len(found) - len(shown))
