"""Decide what a response proves about a gap. Pure.

Rows are sparse, so a response proves nothing about the time before its first row or after its last one: the feed was
quiet, or the provider is behind.

A rolling window is complete from its oldest row to its newest. To cover a gap it must have a row from the gap's start
or before, and one from its end or after. A row that is older than any window reaches, or dated ahead, is not part of
one (it was restated, or the provider's clock differs), and proves nothing.

A history response covers the requested range up to its newest row; the rest needs further proof, see ``proven_until``
and ``worker``. An empty list covers nothing by itself, and is refused if the database has samples from that range. A
truncated response proves nothing: it begins or ends inside a gap, although the database has samples from before or
after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from ingestor.core.times import to_datetime, to_us
from ingestor.pipeline.decoder import DecodedFrame
from ingestor.provider.rest_api import bucket_length
from ingestor.repair.plan import MAX_WINDOW_AGE, WINDOW, HistoryQuery
from ingestor.store.maintenance.repairs import Repair, SampleRange

QUOTE_CHARACTERS = 200  # of an unreadable row
MAX_AHEAD = WINDOW  # of the provider's clock
MICROSECOND = timedelta(microseconds=1)


def why_unreadable(decoded: DecodedFrame) -> str | None:
    """Return why a response is not a list of rows, or None. An error object is decoded as a single, unreadable row."""
    if dead := decoded.dead_frame:
        return f"the response is not a list of rows: {dead.reason}"
    if decoded.dead and not decoded.observations:
        first = decoded.dead[0]
        return f"no row of the response is readable: {first.reason}, {first.body[:QUOTE_CHARACTERS]}"
    return None


def covers_start(decoded: DecodedFrame, repair: Repair, received_us: int) -> bool:
    """Return whether the rolling window that was received at ``received_us`` includes the gap's start."""
    oldest, start = received_us - MAX_WINDOW_AGE // MICROSECOND, to_us(repair.from_ts)
    return any(oldest <= ts_us <= start for ts_us in _timestamps(decoded, repair, repair.ticker))


def covers_end(decoded: DecodedFrame, repair: Repair, received_us: int) -> bool:
    """Return whether the rolling window that was received at ``received_us`` includes the gap's end."""
    end, newest = to_us(repair.to_ts), received_us + MAX_AHEAD // MICROSECOND
    return any(end <= ts_us <= newest for ts_us in _timestamps(decoded, repair, repair.ticker))


def newest_row(decoded: DecodedFrame, repair: Repair, query: HistoryQuery) -> datetime | None:
    """Return the ts of the newest row that ``query`` requested; None if there is none."""
    start, end = to_us(query.start), to_us(query.end)
    timestamps = [ts_us for ts_us in _timestamps(decoded, repair, query.ticker) if start <= ts_us < end]
    return to_datetime(max(timestamps)) if timestamps else None


def proven_until(decoded: DecodedFrame, repair: Repair, query: HistoryQuery, gap_end: datetime) -> datetime:
    """Return up to when a response proves the history that ``query`` requested.

    That is the end of its range if it has a row from the end of the last gap in it or after, or from the last bucket of
    the range. Else it is its newest row, or without any the start of the range.
    """
    newest = newest_row(decoded, repair, query) or query.start
    return query.end if newest >= min(gap_end, query.end - bucket_length(repair.path)) else newest


def why_inconclusive(
    decoded: DecodedFrame, repair: Repair, query: HistoryQuery, stored: SampleRange | None, gap_end: datetime
) -> str | None:
    """Return why a response does not cover the requested range, as far as gaps are in it; None if it does.

    ``stored`` are the samples that the database had in that range. ``gap_end`` is the end of the last gap in it.
    """
    start, end = to_us(query.start), to_us(query.end)
    timestamps = list(_timestamps(decoded, repair, query.ticker))
    if not any(start <= ts_us < end for ts_us in timestamps):
        if decoded.rows:
            return f"none of the {decoded.rows} rows of the response matches the request"
        return f"the response is empty, but the database has samples {_format_range(stored)}" if stored else None
    received = SampleRange(to_datetime(min(timestamps)), to_datetime(max(timestamps)))
    if stored and (received.first > max(stored.first, repair.from_ts) or received.last < min(stored.last, gap_end)):
        return (
            f"the response is truncated: its rows are {_format_range(received)},"
            f" but the database has samples {_format_range(stored)}"
        )
    return None


def _format_range(samples: SampleRange) -> str:
    return f"from {samples.first:%Y-%m-%d %H:%M:%S} to {samples.last:%Y-%m-%d %H:%M:%S}"


def _timestamps(decoded: DecodedFrame, repair: Repair, ticker: str) -> Iterable[int]:
    """Yield the ts (µs) of every row of the repair's feed, ticker and user."""
    if decoded.feed != repair.feed:
        return
    for (_, _, row_ticker, row_user), ts_us, _, _ in decoded.observations:
        if ticker in ("", row_ticker) and repair.user_id in ("", row_user):
            yield ts_us
