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
CAME_US = to_us(at(1, 1, 0))
LONG_AGO = row() | {"ts": "2025-12-31T22:59:00.000Z"}
STEP = HistoryQuery(start=at(1, 0, 0), end=at(1, 1, 0), ticker="AAPL")


def answer(payload: Any, **more: Any) -> DecodedFrame:
    return decoder().decode(frame(payload, source="snapshot", event="get", **more))


@pytest.mark.parametrize(
    ("rows", "proven"),
    [
        pytest.param([row(minute=30), row(minute=51)], True, id="from the bucket that the gap began in"),
        pytest.param([row(minute=31), row(minute=51)], False, id="sparse: what was before its first row?"),
        pytest.param([row(minute=51), row(minute=3)], True, id="in any order"),
        pytest.param([row("ON", minute=3), row(minute=51)], False, id="another ticker says nothing"),
        pytest.param([], False, id="nothing says nothing"),
        pytest.param([LONG_AGO, row(minute=51)], False, id="no window reaches back so far: it was restated"),
        pytest.param([LONG_AGO, row(minute=30)], True, id="beside a whole window"),
    ],
)
def test_a_window_proves_a_gap_only_if_it_reaches_back_to_its_start(rows: list[Any], proven: bool) -> None:
    assert verification.covers_start(answer(rows), GAP, CAME_US) is proven


def test_the_rows_of_another_feed_prove_nothing() -> None:
    other = answer([row(minute=3, field="moving_average")], path="/real-time/crowd-sentiment-moving-average")
    assert not verification.covers_start(other, GAP, CAME_US)
    assert not verification.covers_start(answer([row(minute=3)], params='{"period": "30"}'), GAP, CAME_US)


def test_where_one_user_is_asked_for_his_rows_count() -> None:
    asked = repair(at(1, 0, 30), at(1, 0, 50), path="/real-time/user-sentiment", ticker="", user_id="7")
    others, his = (row(minute=3, field="sentiment") | {"user_id": user} for user in ("8", "7"))
    path = "/real-time/user-sentiment"
    assert not verification.covers_start(answer([others], path=path), asked, CAME_US)
    assert verification.covers_start(answer([others, his], path=path), asked, CAME_US)


OTHERS = "none of the 1 rows of the answer is of what was asked for"
EMPTY = "the answer is empty, though samples from 2026-01-01 00:00:00 to 2026-01-01 00:59:00 are known"
CUT_OFF = "the answer is cut off, its rows are from "


@pytest.mark.parametrize(
    ("minutes", "held", "expected"),
    [
        pytest.param([10], None, None, id="rows of that time"),
        pytest.param([0, 30, 59], (0, 59), None, id="as many as we hold"),
        pytest.param([29, 51], (0, 59), None, id="from before the gap to after it"),
        pytest.param([31, 59], (0, 59), CUT_OFF, id="it begins in the gap, though there was something before"),
        pytest.param([0, 49], (0, 59), CUT_OFF, id="it ends in the gap, though there was something later"),
        pytest.param([35, 49], (40, 45), None, id="nothing is known of before and after"),
        pytest.param([], None, None, id="a quiet time"),
        pytest.param([], (0, 59), EMPTY, id="not so quiet"),
        pytest.param([60], None, OTHERS, id="the end is not in it"),
    ],
)
def test_history_proves_the_range_that_was_asked_for(
    minutes: list[int], held: tuple[int, int] | None, expected: str | None
) -> None:
    known = held and SampleRange(*(at(1, 0, minute) for minute in held))
    found = verification.why_inconclusive(
        answer([row(minute=minute) for minute in minutes]), GAP, STEP, known, GAP.to_ts
    )
    assert (found is None) if expected is None else (found is not None and expected in found)


def test_history_that_repairs_a_later_gap_as_well_reaches_to_its_end() -> None:
    said, held = answer([row(minute=0), row(minute=51)]), SampleRange(at(1, 0), at(1, 0, 59))
    assert verification.why_inconclusive(said, GAP, STEP, held, GAP.to_ts) is None
    assert CUT_OFF in str(verification.why_inconclusive(said, GAP, STEP, held, at(1, 0, 58)))


def test_history_of_another_ticker_proves_nothing() -> None:
    assert verification.why_inconclusive(answer([row("ON")]), GAP, STEP, None, GAP.to_ts) == OTHERS


@pytest.mark.parametrize("body", ["<html>", "7", '{"a": 1', "[]]"])
def test_what_is_no_list_of_rows_is_no_answer(body: str) -> None:
    assert str(verification.why_unreadable(answer(body))).startswith("the answer is no list of rows: ")
    assert verification.why_unreadable(answer([row(), {"ts": "?"}])) is None


def test_an_error_object_is_no_answer_whatever_its_status() -> None:
    said = answer({"type": "api_error", "message": "Try again"})
    assert verification.why_unreadable(said) == (
        'no row of the answer can be read: no ts, {"type": "api_error", "message": "Try again"}'
    )
