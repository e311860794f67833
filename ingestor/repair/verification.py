"""What an answer proves. Pure.

A rolling window is whole from its oldest row on, so it must hold a row from the gap's start or before: rows are
sparse, and one that begins later says nothing of the time before it. A row from longer ago than a window reaches is no
part of one (it was restated, or the provider's clock is another), and proves nothing either.
History proves the range that it was asked for; an empty list is an answer as well (the feed was quiet), unless we hold
rows of that range ourselves. One that was cut off proves nothing: it begins or ends within a gap, though we hold rows
from before or after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from ingestor.core.times import to_datetime, to_us
from ingestor.pipeline.decoder import DecodedFrame
from ingestor.repair.plan import MAX_WINDOW_AGE, HistoryQuery
from ingestor.store.maintenance.repairs import Repair, SampleRange

QUOTE_CHARACTERS = 200  # characters of what cannot be read


def why_unreadable(decoded: DecodedFrame) -> str | None:
    """Why an answer is no list of rows; None if it is one. An error object looks like a single row."""
    if dead := decoded.dead_frame:
        return f"the answer is no list of rows: {dead.reason}"
    if decoded.dead and not decoded.observations:
        return f"no row of the answer can be read: {decoded.dead[0].reason}, {decoded.dead[0].body[:QUOTE_CHARACTERS]}"
    return None


def covers_start(decoded: DecodedFrame, repair: Repair, received_us: int) -> bool:
    """Whether the rolling window that was received then holds the gap's start."""
    oldest, start = received_us - MAX_WINDOW_AGE // timedelta(microseconds=1), to_us(repair.from_ts)
    return any(oldest <= ts_us <= start for ts_us in _stamps(decoded, repair, repair.ticker))


def why_inconclusive(
    decoded: DecodedFrame, repair: Repair, step: HistoryQuery, held: SampleRange | None, until: datetime
) -> str | None:
    """Why an answer does not prove the range that was asked for, as far as gaps lie in it; None if it does.

    ``held``: ours of that range. ``until``: where the last gap ends that is to be repaired by it.
    """
    start, end = to_us(step.start), to_us(step.end)
    found = list(_stamps(decoded, repair, step.ticker))
    if not any(start <= ts_us < end for ts_us in found):
        if decoded.rows:
            return f"none of the {decoded.rows} rows of the answer is of what was asked for"
        return f"the answer is empty, though samples {_span(held)} are known" if held else None
    said = SampleRange(to_datetime(min(found)), to_datetime(max(found)))
    if held and (said.first > max(held.first, repair.from_ts) or said.last < min(held.last, until)):
        return f"the answer is cut off, its rows are {_span(said)}, though samples {_span(held)} are known"
    return None


def _span(held: SampleRange) -> str:
    return f"from {held.first:%Y-%m-%d %H:%M:%S} to {held.last:%Y-%m-%d %H:%M:%S}"


def _stamps(decoded: DecodedFrame, repair: Repair, ticker: str) -> Iterable[int]:
    """The ts of every row about the same names."""
    if decoded.feed != repair.feed:
        return
    for (_, _, of_ticker, of_user), ts_us, _, _ in decoded.observations:
        if ticker in ("", of_ticker) and repair.user_id in ("", of_user):
            yield ts_us
