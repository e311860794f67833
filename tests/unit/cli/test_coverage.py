from __future__ import annotations

from datetime import timedelta

from ingestor.cli import coverage
from ingestor.store.read.coverage_report import SubscriptionCoverage, TimeSpan
from tests.support.repairs import at, repair

END = at(6)


def listening(wanted: TimeSpan | None, *covered: TimeSpan) -> SubscriptionCoverage:
    names = {"subscription_id": 1, "feed": "f", "path": "/p", "params": "{}", "ticker": "AAPL"}
    return SubscriptionCoverage(**names, wanted=wanted, covered=covered, gaps=())  # type: ignore[arg-type]


def test_the_strip_has_a_shape_for_each_half_hour() -> None:
    wanted = TimeSpan(at(5, 1), at(5, 4))
    strip = coverage.strip(listening(wanted, TimeSpan(at(5, 1), at(5, 2)), TimeSpan(at(5, 2, 10), at(5, 2, 20))), END)
    assert strip == "··" + "██" + "▄x" + "xx" + "·" * 40


def test_of_many_repairs_the_newest_are_told_and_how_many_more_there_are() -> None:
    failed = repair(at(5, 10), at(5, 11), state="failed", error="no\x1b[2J")
    waiting = repair(at(4, 10), at(4, 11))
    assert coverage._format_repairs([failed, waiting]) == [
        "failed: /real-time/crowd-sentiment AAPL 2026-01-05 10:00 to 2026-01-05 11:00: no\\u001b[2J",
        "open: /real-time/crowd-sentiment AAPL 2026-01-04 10:00 to 2026-01-04 11:00: waiting, historical",
    ]
    assert coverage._format_repairs([failed] * 1000)[20:] == [
        "and 980 more repairs in progress or failed; --output json has all"
    ]


def test_a_hundred_percent_is_said_only_of_what_is_whole() -> None:
    almost = listening(
        TimeSpan(END - timedelta(days=100), END), TimeSpan(END - timedelta(days=100), END - timedelta(seconds=1))
    )
    percent = coverage._percent(almost)
    assert percent is not None
    assert coverage._round_down(percent) == "99.99"
    assert coverage._round_down(100.0) == "100.00"
