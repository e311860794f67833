from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from io import StringIO

import pytest
from rich.console import Console

from ingestor.cli import coverage
from ingestor.store.read.coverage_report import CoverageGap, SubscriptionCoverage, TimeSpan
from tests.support.repairs import at, repair

END = at(6)


def make_coverage(wanted: TimeSpan | None, *covered: TimeSpan) -> SubscriptionCoverage:
    names = {"subscription_id": 1, "feed": "f", "path": "/p", "params": "{}", "ticker": "AAPL"}
    return SubscriptionCoverage(**names, wanted=wanted, covered=covered, gaps=())  # type: ignore[arg-type]


def test_strip_draws_each_half_hour() -> None:
    wanted = TimeSpan(at(5, 1), at(5, 4))
    covered = (TimeSpan(at(5, 1), at(5, 2)), TimeSpan(at(5, 2, 10), at(5, 2, 20)))
    strip = coverage.strip(make_coverage(wanted, *covered), END)
    assert strip == "··" + "██" + "▄x" + "xx" + "·" * 40


def test_repair_list_is_truncated_with_count() -> None:
    failed = repair(at(5, 10), at(5, 11), state="failed", error="no\x1b[2J")
    waiting = repair(at(4, 10), at(4, 11))
    assert coverage._format_repairs([failed, waiting]) == [
        "failed: /real-time/crowd-sentiment AAPL 2026-01-05 10:00 to 2026-01-05 11:00: no\\u001b[2J",
        "open: /real-time/crowd-sentiment AAPL 2026-01-04 10:00 to 2026-01-04 11:00: waiting, historical",
    ]
    assert coverage._format_repairs([failed] * 1000)[20:] == [
        "and 980 more repairs in progress or failed; --output json has all"
    ]


def test_percentage_is_rounded_down() -> None:
    almost = make_coverage(
        TimeSpan(END - timedelta(days=100), END), TimeSpan(END - timedelta(days=100), END - timedelta(seconds=1))
    )
    percent = coverage._percent(almost)
    assert percent is not None
    assert coverage._round_down(percent) == "99.99"
    assert coverage._round_down(100.0) == "100.00"


@pytest.mark.parametrize(
    ("width", "has_strip", "has_reason"), [(200, True, True), (80, False, True), (40, False, False)]
)
def test_table_fits_the_terminal(width: int, has_strip: bool, has_reason: bool) -> None:
    wanted = TimeSpan(at(5), END)
    gap = CoverageGap(at(5), END, "disconnected", "the server closed the connection")
    row = replace(make_coverage(wanted), path="/real-time/crowd-sentiment", feed="crowd-sentiment", gaps=(gap,))
    table = coverage._table([row], {1: coverage.strip(row, END)}, at(5), width)
    file = StringIO()
    Console(file=file, width=width).print(table)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    (shown,) = [line for line in lines if "0.00 %" in line]
    assert "AAPL" in shown
    assert "covered" in file.getvalue()
    assert "missing" in file.getvalue()
    assert ("x" * 48 in shown) == has_strip
    assert ("the server" in file.getvalue()) == has_reason
