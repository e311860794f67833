"""Decide what to try next for a repair, and how to split its history into requests. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ingestor.provider.rest_api import DAY, bucket_length, current_request, has_history, max_range, uses_dates
from ingestor.store.maintenance.repairs import Repair, RepairKind

WINDOW = timedelta(hours=1)  # of a real-time response; those in the provider's documentation span 55 to 62 minutes
MAX_WINDOW_AGE = 2 * WINDOW  # no real-time response reaches back further
RESPONSE_TIMEOUT = timedelta(minutes=3)  # for responses after a subscription; a quiet feed sends one per minute
HISTORY_DELAY = DAY  # after the end of a day, its history may be missing for this long
UNPROVEN = "not proven yet: "  # begins the error of a repair that waits for a later row


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """One request for history: ``start`` ≤ ts < ``end``, for one ticker, or (empty) for the repair's user."""

    start: datetime
    end: datetime
    ticker: str

    @property
    def cursor(self) -> str:
        """The value of ``repairs.cursor`` once this query is committed: the end of its range, and its ticker."""
        return f"{self.end.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {self.ticker}"


def midnight(at: datetime) -> datetime:
    """Return the start of its UTC day."""
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def day_end(at: datetime) -> datetime:
    """Return the end of the UTC day in which an interval up to ``at`` ends."""
    start = midnight(at)
    return start if start == at else start + DAY


def next_kind(repair: Repair, now: datetime) -> RepairKind | None:
    """Return what to try after ``repair.kind`` failed. None if nothing is left, see ``why_unrepairable``."""
    in_window = now - repair.from_ts < MAX_WINDOW_AGE
    if repair.kind == "window" and in_window and current_request(repair.path, repair.parsed_params):
        return "snapshot"
    return "historical" if repair.kind != "historical" and has_history(repair.path) else None


def why_unrepairable(repair: Repair) -> str:
    """Return why a repair failed for which nothing is left to try."""
    return f"no response contained all of the gap, and the provider documents no history for {repair.feed}"


def may_be_too_early(repair: Repair, status: int, now: datetime) -> bool:
    """Return whether the provider may have refused only because the day is not over by its clock and time zone."""
    return status == 400 and not is_final(repair.to_ts, now)


def is_final(end: datetime, now: datetime) -> bool:
    """Return whether the provider's history up to ``end`` is complete, whatever it contains."""
    return now >= day_end(end) + HISTORY_DELAY


def history_range(repair: Repair) -> tuple[datetime, datetime]:
    """Return the range of history to request.

    A manual repair has its own range. For a gap, the range includes the window before it, whose values may have been
    restated during the gap; and it extends to the end of the day as far as that needs no further request, because that
    repairs later gaps of that day as well.
    """
    if repair.kind == "manual":
        return repair.from_ts, repair.to_ts
    start, length = repair.from_ts - WINDOW, max_range(repair.path)
    requests = -(-(repair.to_ts - start) // length)
    return start, max(repair.to_ts, min(start + requests * length, day_end(repair.to_ts)))


def split_range(
    path: str, start: datetime, end: datetime, max_length: timedelta | None = None
) -> Iterator[tuple[datetime, datetime]]:
    """Split a range into ranges that one request may cover: whole days each, if the path is requested by dates.

    ``max_length`` limits them further.
    """
    length = min(max_range(path), max_length) if max_length else max_range(path)
    while start < end:
        stop = min((midnight(start) if uses_dates(path) else start) + length, end)
        yield start, stop
        start = stop


def halved_length(path: str, query: HistoryQuery) -> timedelta | None:
    """Return the ``max_length`` to use after the response to ``query`` was too large; None if it cannot be split."""
    if uses_dates(path):
        days = -(-(query.end - midnight(query.start)) // DAY)
        return days // 2 * DAY or None
    length = (query.end - query.start) / 2
    return length if length >= bucket_length(path) else None


def all_queries(repair: Repair, tickers: Sequence[str], max_length: timedelta | None = None) -> Iterator[HistoryQuery]:
    """Yield every query of a repair, one ticker after the other."""
    for ticker in tickers:
        for start, end in split_range(repair.path, *history_range(repair), max_length):
            yield HistoryQuery(start=start, end=end, ticker=ticker)


def remaining_queries(
    repair: Repair, tickers: Sequence[str], max_length: timedelta | None = None
) -> Iterator[HistoryQuery]:
    """Yield the queries after the repair's cursor, which may have been stored with another ``max_length``."""
    done = _sort_key(repair.cursor)
    return (query for query in all_queries(repair, tickers, max_length) if _sort_key(query.cursor) > done)


def _sort_key(cursor: str) -> tuple[str, str]:
    until, _, ticker = cursor.partition(" ")
    return ticker, until
