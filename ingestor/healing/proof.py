"""What an answer proves. Pure.

A rolling window is whole from its oldest row on, so it must hold a row from the gap's start or before: rows are
sparse, and one that begins later says nothing of the time before it. A row from longer ago than a window reaches is no
part of one (it was restated, or the provider's clock is another), and proves nothing either.
History proves the range that it was asked for; an empty list is an answer as well (the feed was quiet), unless we hold
rows of that range ourselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from ingestor.healing.plan import REACH, Step
from ingestor.pipeline.decode import Decoded
from ingestor.store.repairs import Repair
from ingestor.store.times import microseconds


def unreadable(decoded: Decoded) -> str | None:
    """Why an answer is no list of rows; None if it is one."""
    dead = decoded.dead_frame
    return f"the answer is no list of rows: {dead.reason}" if dead else None


def reaches_back(decoded: Decoded, repair: Repair, received_us: int) -> bool:
    """Whether the rolling window that was received then holds the gap's start."""
    oldest, start = received_us - REACH // timedelta(microseconds=1), microseconds(repair.from_ts)
    return any(oldest <= ts_us <= start for ts_us in _stamps(decoded, repair, repair.ticker))


def doubt(decoded: Decoded, repair: Repair, step: Step, *, rows_held: int) -> str | None:
    """Why an answer does not prove the range that was asked for; None if it does. ``rows_held``: ours of that range."""
    start, end = microseconds(step.start), microseconds(step.end)
    found = list(_stamps(decoded, repair, step.ticker))
    if any(start <= ts_us < end for ts_us in found):
        return None
    if decoded.rows:
        return f"none of the {decoded.rows} rows of the answer is of what was asked for"
    if rows_held:
        return f"the answer is empty, though {rows_held} samples of that time are known"
    return None


def _stamps(decoded: Decoded, repair: Repair, ticker: str) -> Iterable[int]:
    """The ts of every row about the same names."""
    if decoded.feed != repair.feed:
        return
    for (_, _, of_ticker, of_user), ts_us, _, _ in decoded.observations:
        if ticker in ("", of_ticker) and repair.user_id in ("", of_user):
            yield ts_us
