from __future__ import annotations

import json
from typing import Any

import pytest

from ingestor.monitoring.latest_values import LEVELS, WINDOW_VALUES, LatestValues
from ingestor.store.write.batch import SampleRow

MINUTE_US = 60_000_000
FEED = "crowd-sentiment"


def row(
    minute: int, value: float = 0.0, ticker: str = "AAPL", metric: str = "crowd_sentiment", user: str = ""
) -> SampleRow:
    received_us = minute * MINUTE_US + 5_000
    return SampleRow((FEED, metric, ticker, user), minute * MINUTE_US, value, None, received_us, "stream", 1, 0)


NAMES = ("feed", "ticker", "metric", "ts_ms", "received_ms", "rows", "restated", "value", "least", "greatest", "levels")


def lines(values: LatestValues, after: int = 0) -> dict[str, dict[str, Any]]:
    """Return the lines of values.json by ticker, as dictionaries."""
    decoded = json.loads(values.changed_since(after))["lines"]
    return {line[1]: dict(zip(NAMES, line, strict=True)) for line in decoded}


def test_line_has_the_newest_value_and_the_trend() -> None:
    values = LatestValues()
    values.add_rows([row(1, -0.5), row(2, 0.5), row(3, 0.0)])
    assert lines(values)["AAPL"] == {
        "feed": FEED,
        "ticker": "AAPL",
        "metric": "crowd_sentiment",
        "ts_ms": 180_000,
        "received_ms": 180_005,
        "rows": 3,
        "restated": 0,
        "value": 0.0,
        "least": -0.5,
        "greatest": 0.5,
        "levels": "0zi",
    }


def test_values_are_sorted_by_the_providers_clock() -> None:
    values = LatestValues()
    values.add_rows([row(2, 2), row(4, 4)])
    values.add_rows([row(3, 3), row(1, 1)])
    line = lines(values)["AAPL"]
    assert (line["value"], line["levels"], line["ts_ms"]) == (4, "0cnz", 240_000)


def test_restated_value_replaces_the_previous_one_and_counts() -> None:
    values = LatestValues()
    values.add_rows([row(1, 0), row(2, 35), row(1, 7), row(2, 35)])
    line = lines(values)["AAPL"]
    assert (line["restated"], line["least"], line["rows"]) == (1, 7, 4)


def test_values_of_different_users_do_not_count_as_restated() -> None:
    values = LatestValues()
    values.add_rows([row(1, 0.1, user="7"), row(1, 0.2, user="8")])
    assert lines(values)["AAPL"]["restated"] == 0


def test_window_keeps_the_newest_values() -> None:
    values = LatestValues()
    values.add_rows([row(minute, minute) for minute in range(100, 101 + WINDOW_VALUES)])
    values.add_rows([row(1, -1)])  # older than all of them
    line = lines(values)["AAPL"]
    assert (len(line["levels"]), line["least"], line["greatest"]) == (WINDOW_VALUES, 101, 100 + WINDOW_VALUES)
    values.add_rows([SampleRow((FEED, "crowd_sentiment", "AAPL", ""), 150 * MINUTE_US + 1, 0, None, 0, "stream", 1, 0)])
    line = lines(values)["AAPL"]
    assert (len(line["levels"]), line["least"], line["value"]) == (WINDOW_VALUES, 0, 100 + WINDOW_VALUES)


def test_window_keeps_the_metric_that_came_first() -> None:
    values = LatestValues()
    values.add_rows([row(1, 1), row(1, 2, metric="volume"), row(2, 3, metric="volume")])
    line = lines(values)["AAPL"]
    assert (line["metric"], line["value"], line["rows"]) == ("crowd_sentiment", 1, 1)


def test_changed_since_returns_later_changes_only() -> None:
    values = LatestValues()
    values.add_rows([row(1, ticker="AAPL"), row(1, ticker="ON")])
    seen = json.loads(values.changed_since(0))["version"]
    assert lines(values, after=seen) == {}
    values.add_rows([row(2, ticker="ON")])
    assert set(lines(values, after=seen)) == {"ON"}
    assert set(lines(values, after=seen + 10)) == {"AAPL", "ON"}  # a version of another run


def test_number_of_windows_is_bounded() -> None:
    values = LatestValues(max_windows=2)
    values.add_rows([row(1, ticker=ticker) for ticker in ("A", "B", "C")])
    assert set(lines(values)) == {"B", "C"}


@pytest.mark.parametrize(
    ("numbers", "levels"),
    [
        pytest.param((1.0, 1.0), "00", id="flat"),
        pytest.param((-1.7e308, 1.7e308, 0.0), "0zi", id="difference overflows"),
        pytest.param((0.0, 5e-324), "00", id="difference underflows"),
    ],
)
def test_levels_work_for_extreme_doubles(numbers: tuple[float, ...], levels: str) -> None:
    values = LatestValues()
    values.add_rows([row(minute, number) for minute, number in enumerate(numbers)])
    assert lines(values)["AAPL"]["levels"] == levels
    assert len(LEVELS) == 36
