from __future__ import annotations

from typing import Any

import pytest

from ingestor.healing import proof
from ingestor.healing.plan import Step
from ingestor.pipeline.decode import Decoded
from ingestor.store.times import microseconds
from tests.support.entries import decoder, frame, row
from tests.support.healing import at, repair

GAP = repair(at(1, 0, 30, 20), at(1, 0, 50))
CAME_US = microseconds(at(1, 1, 0))
LONG_AGO = row() | {"ts": "2025-12-31T22:59:00.000Z"}
STEP = Step(start=at(1, 0, 0), end=at(1, 1, 0), ticker="AAPL")


def answer(payload: Any, **more: Any) -> Decoded:
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
    assert proof.reaches_back(answer(rows), GAP, CAME_US) is proven


def test_the_rows_of_another_feed_prove_nothing() -> None:
    other = answer([row(minute=3, field="moving_average")], path="/real-time/crowd-sentiment-moving-average")
    assert not proof.reaches_back(other, GAP, CAME_US)
    assert not proof.reaches_back(answer([row(minute=3)], params='{"period": "30"}'), GAP, CAME_US)


def test_where_one_user_is_asked_for_his_rows_count() -> None:
    asked = repair(at(1, 0, 30), at(1, 0, 50), path="/real-time/user-sentiment", ticker="", user_id="7")
    others, his = (row(minute=3, field="sentiment") | {"user_id": user} for user in ("8", "7"))
    path = "/real-time/user-sentiment"
    assert not proof.reaches_back(answer([others], path=path), asked, CAME_US)
    assert proof.reaches_back(answer([others, his], path=path), asked, CAME_US)


@pytest.mark.parametrize(
    ("rows", "rows_held", "expected"),
    [
        pytest.param([row(minute=10)], 0, None, id="rows of that time"),
        pytest.param([row(minute=10)], 99, None, id="however many we hold"),
        pytest.param([], 0, None, id="a quiet time"),
        pytest.param([], 3, "the answer is empty, though 3 samples of that time are known", id="not so quiet"),
        pytest.param(
            [row(minute=60)], 0, "none of the 1 rows of the answer is of what was asked for", id="the end is not in it"
        ),
        pytest.param([row("ON")], 0, "none of the 1 rows of the answer is of what was asked for", id="another ticker"),
    ],
)
def test_history_proves_the_range_that_was_asked_for(rows: list[Any], rows_held: int, expected: str | None) -> None:
    assert proof.doubt(answer(rows), GAP, STEP, rows_held=rows_held) == expected


@pytest.mark.parametrize("body", ["<html>", "7", '{"a": 1', "[]]"])
def test_what_is_no_list_of_rows_is_no_answer(body: str) -> None:
    assert str(proof.unreadable(answer(body))).startswith("the answer is no list of rows: ")
    assert proof.unreadable(answer([row(), {"ts": "?"}])) is None
