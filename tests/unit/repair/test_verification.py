from __future__ import annotations

from typing import Any

import pytest

from ingestor.core.times import to_us
from ingestor.pipeline.decoder import DecodedFrame
from ingestor.repair import verification
from ingestor.repair.plan import HistoryQuery
from ingestor.store.maintenance.repairs import SampleRange
from tests.support.entries import decoder, frame, row
from tests.support.repairs import at, repair

GAP = repair(at(1, 0, 30, 20), at(1, 0, 50))
RECEIVED_US = to_us(at(1, 1, 0))
OLDER_THAN_WINDOW = row() | {"ts": "2025-12-31T22:59:00.000Z"}
QUERY = HistoryQuery(start=at(1, 0, 0), end=at(1, 1, 0), ticker="AAPL")


def response(payload: Any, **fields: Any) -> DecodedFrame:
    return decoder().decode(frame(payload, source="snapshot", event="get", **fields))


@pytest.mark.parametrize(
    ("rows", "covers"),
    [
        pytest.param([row(minute=30), row(minute=51)], True, id="from the bucket of the gap's start"),
        pytest.param([row(minute=31), row(minute=51)], False, id="starts after the gap's start"),
        pytest.param([row(minute=51), row(minute=3)], True, id="in any order"),
        pytest.param([row("ON", minute=3), row(minute=51)], False, id="another ticker"),
        pytest.param([], False, id="empty"),
        pytest.param([OLDER_THAN_WINDOW, row(minute=51)], False, id="row older than any window"),
        pytest.param([OLDER_THAN_WINDOW, row(minute=30)], True, id="older row beside a complete window"),
    ],
)
def test_window_covers_gap_only_from_its_start(rows: list[Any], covers: bool) -> None:
    assert verification.covers_start(response(rows), GAP, RECEIVED_US) is covers


@pytest.mark.parametrize(
    ("rows", "covers"),
    [
        pytest.param([row(minute=3), row(minute=50)], True, id="from the gap's end"),
        pytest.param([row(minute=3), row(minute=49)], False, id="ends before the gap does"),
        pytest.param([row(minute=55), row(minute=3)], True, id="in any order"),
        pytest.param([row(minute=3), row("ON", minute=55)], False, id="another ticker"),
        pytest.param([], False, id="empty"),
        pytest.param([row(minute=3), row(minute=65)], True, id="a few minutes ahead of our clock"),
        pytest.param([row(minute=3), row(minute=121)], False, id="dated ahead"),
    ],
)
def test_window_covers_gap_only_up_to_its_newest_row(rows: list[Any], covers: bool) -> None:
    assert verification.covers_end(response(rows), GAP, RECEIVED_US) is covers


@pytest.mark.parametrize(
    ("minutes", "gap_end", "expected"),
    [
        pytest.param([0, 50], at(1, 0, 50), QUERY.end, id="a row from the gap's end"),
        pytest.param([0, 49], at(1, 0, 50), at(1, 0, 49), id="up to the newest row"),
        pytest.param([0, 59], at(1, 2), QUERY.end, id="the gap goes on, and the last bucket is there"),
        pytest.param([0, 58], at(1, 2), at(1, 0, 58), id="the gap goes on, and the last bucket is missing"),
        pytest.param([], at(1, 0, 50), QUERY.start, id="empty"),
        pytest.param([60], at(1, 0, 50), QUERY.start, id="nothing from the range"),
        pytest.param([], QUERY.start, QUERY.end, id="no gap in this part of the range"),
    ],
)
def test_history_proves_the_range_up_to_its_newest_row(minutes: list[int], gap_end: Any, expected: Any) -> None:
    decoded = response([row(minute=minute) for minute in minutes])
    assert verification.proven_until(decoded, GAP, QUERY, gap_end) == expected
    others = response([row("ON", minute=minute) for minute in minutes])
    assert verification.proven_until(others, GAP, QUERY, at(1, 0, 50)) == QUERY.start


def test_rows_of_other_feed_do_not_cover_gap() -> None:
    other = response([row(minute=3, field="moving_average")], path="/real-time/crowd-sentiment-moving-average")
    assert not verification.covers_start(other, GAP, RECEIVED_US)
    assert not verification.covers_start(response([row(minute=3)], params='{"period": "30"}'), GAP, RECEIVED_US)


def test_rows_of_other_user_do_not_cover_gap() -> None:
    requested = repair(at(1, 0, 30), at(1, 0, 50), path="/real-time/user-sentiment", ticker="", user_id="7")
    others, his = (row(minute=3, field="sentiment") | {"user_id": user} for user in ("8", "7"))
    path = "/real-time/user-sentiment"
    assert not verification.covers_start(response([others], path=path), requested, RECEIVED_US)
    assert verification.covers_start(response([others, his], path=path), requested, RECEIVED_US)


NO_MATCH = "none of the 1 rows of the response matches the request"
EMPTY = "the response is empty, but the database has samples from 2026-01-01 00:00:00 to 2026-01-01 00:59:00"
TRUNCATED = "the response is truncated: its rows are from "


@pytest.mark.parametrize(
    ("minutes", "stored", "expected"),
    [
        pytest.param([10], None, None, id="rows in the range"),
        pytest.param([0, 30, 59], (0, 59), None, id="all that is stored"),
        pytest.param([29, 51], (0, 59), None, id="from before to after the gap"),
        pytest.param([31, 59], (0, 59), TRUNCATED, id="begins in the gap, samples before it are stored"),
        pytest.param([0, 49], (0, 59), TRUNCATED, id="ends in the gap, samples after it are stored"),
        pytest.param([35, 49], (40, 45), None, id="no samples stored before or after"),
        pytest.param([], None, None, id="empty, nothing stored"),
        pytest.param([], (0, 59), EMPTY, id="empty, samples stored"),
        pytest.param([60], None, NO_MATCH, id="the end is excluded"),
    ],
)
def test_history_covers_requested_range(
    minutes: list[int], stored: tuple[int, int] | None, expected: str | None
) -> None:
    samples = stored and SampleRange(*(at(1, 0, minute) for minute in stored))
    found = verification.why_inconclusive(
        response([row(minute=minute) for minute in minutes]), GAP, QUERY, samples, GAP.to_ts
    )
    assert (found is None) if expected is None else (found is not None and expected in found)


def test_history_of_two_gaps_must_reach_end_of_second() -> None:
    decoded, stored = response([row(minute=0), row(minute=51)]), SampleRange(at(1, 0), at(1, 0, 59))
    assert verification.why_inconclusive(decoded, GAP, QUERY, stored, GAP.to_ts) is None
    assert TRUNCATED in str(verification.why_inconclusive(decoded, GAP, QUERY, stored, at(1, 0, 58)))


def test_history_of_other_ticker_is_inconclusive() -> None:
    assert verification.why_inconclusive(response([row("ON")]), GAP, QUERY, None, GAP.to_ts) == NO_MATCH


@pytest.mark.parametrize("body", ["<html>", "7", '{"a": 1', "[]]"])
def test_response_without_rows_is_unreadable(body: str) -> None:
    assert str(verification.why_unreadable(response(body))).startswith("the response is not a list of rows: ")
    assert verification.why_unreadable(response([row(), {"ts": "?"}])) is None


def test_error_object_is_unreadable() -> None:
    decoded = response({"type": "api_error", "message": "Try again"})
    assert verification.why_unreadable(decoded) == (
        'no row of the response is readable: no ts, {"type": "api_error", "message": "Try again"}'
    )
