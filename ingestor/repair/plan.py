"""What to try next for a repair, and in which pieces its history is asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ingestor.provider.rest_api import DAY, bucket_length, current_request, has_history, max_range, uses_dates
from ingestor.store.maintenance.repairs import Repair, RepairKind

WINDOW = timedelta(hours=1)  # of a real-time answer, as far as the printed ones tell: 55 to 62 minutes
MAX_WINDOW_AGE = 2 * WINDOW  # so long ago is out of reach of any real-time answer
RESPONSE_TIMEOUT = timedelta(minutes=3)  # for the answers that follow a subscription; a calm feed speaks once a minute
HISTORY_DELAY = DAY  # after which "not yet" is no excuse any more for a day that is over


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """One question about past days: ``start`` ≤ ts < ``end``, of one ticker, or (empty) of the user asked for."""

    start: datetime
    end: datetime
    ticker: str

    @property
    def cursor(self) -> str:
        """For ``repairs.cursor``: of which ticker, and up to when, all is committed."""
        return f"{self.end.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {self.ticker}"


def midnight(at: datetime) -> datetime:
    """The beginning of its UTC day."""
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def day_end(at: datetime) -> datetime:
    """The end of the UTC day that an interval up to ``at`` ends in."""
    start = midnight(at)
    return start if start == at else start + DAY


def next_kind(repair: Repair, now: datetime) -> RepairKind | None:
    """What to try after ``repair.kind`` was in vain; None if nothing is left: see ``why_not``."""
    within_reach = now - repair.from_ts < MAX_WINDOW_AGE
    if repair.kind == "window" and within_reach and current_request(repair.path, repair.parsed_params):
        return "snapshot"
    return "historical" if repair.kind != "historical" and has_history(repair.path) else None


def why_unrepairable(repair: Repair) -> str:
    """Why a repair that has no way left cannot be done."""
    return f"no answer reached back to the gap's start, and the provider documents no history of {repair.feed}"


def may_be_too_early(repair: Repair, status: int, now: datetime) -> bool:
    """Whether a refusal may only mean that the day is not yesterday yet, by the provider's clock and where it is."""
    return status == 400 and now < day_end(repair.to_ts) + HISTORY_DELAY


def history_range(repair: Repair) -> tuple[datetime, datetime]:
    """What of the history is to be asked for.

    By hand: that. Of a gap: with the window before it, of which values may have been restated meanwhile; and on to the
    end of the day as far as it costs no further question, which repairs later gaps of that day as well.
    """
    if repair.kind == "manual":
        return repair.from_ts, repair.to_ts
    start, step = repair.from_ts - WINDOW, max_range(repair.path)
    questions = -(-(repair.to_ts - start) // step)
    return start, max(repair.to_ts, min(start + questions * step, day_end(repair.to_ts)))


def split_range(
    path: str, start: datetime, end: datetime, longest: timedelta | None = None
) -> Iterator[tuple[datetime, datetime]]:
    """``start`` to ``end`` in pieces that one question may ask for; of what is asked for by dates, whole days each.

    ``longest``: none is to be longer, though it may.
    """
    piece = min(max_range(path), longest) if longest else max_range(path)
    while start < end:
        stop = min((midnight(start) if uses_dates(path) else start) + piece, end)
        yield start, stop
        start = stop


def halved_length(path: str, step: HistoryQuery) -> timedelta | None:
    """How long the pieces are to be where the answer to ``step`` was too long; None if less cannot be asked for."""
    if uses_dates(path):
        days = -(-(step.end - midnight(step.start)) // DAY)
        return days // 2 * DAY or None
    length = (step.end - step.start) / 2
    return length if length >= bucket_length(path) else None


def all_queries(repair: Repair, tickers: Sequence[str], longest: timedelta | None = None) -> Iterator[HistoryQuery]:
    """All questions of a repair, one ticker after the other."""
    for ticker in tickers:
        for start, end in split_range(repair.path, *history_range(repair), longest):
            yield HistoryQuery(start=start, end=end, ticker=ticker)


def remaining_queries(
    repair: Repair, tickers: Sequence[str], longest: timedelta | None = None
) -> Iterator[HistoryQuery]:
    """Those after the repair's cursor, whichever pieces it was in when that was noted."""
    done = _order(repair.cursor)
    return (step for step in all_queries(repair, tickers, longest) if _order(step.cursor) > done)


def _order(cursor: str) -> tuple[str, str]:
    until, _, ticker = cursor.partition(" ")
    return ticker, until
