from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ingestor.core.redaction import redactor
from ingestor.errors import DatabaseUnavailable
from ingestor.monitoring.coverage_strips import CELL_SECONDS, CELLS, MAX_STRIPS, CoverageCache, StateSpan, build_strips

END = datetime(2026, 11, 1, 12, tzinfo=UTC)


def span(
    state: str, from_cell: float, to_cell: float, *, feed: str = "tweet-buzz", subscriptions: int = 1
) -> StateSpan:
    """Return a span whose ends are given in cells before END."""
    from_at, to_at = (END - timedelta(seconds=CELL_SECONDS * cell) for cell in (from_cell, to_cell))
    return StateSpan(feed=feed, state=state, from_at=from_at, to_at=to_at, subscriptions=subscriptions)


def runs(*spans: StateSpan) -> list[tuple[int, str, int]]:
    """Return the runs of the only feed."""
    (strip,) = build_strips(spans, END)
    return [(run.cells, run.state, run.percent) for run in strip.runs]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        pytest.param([span("live", 500, 0)], [(144, "live", 100)], id="longer than a day"),
        pytest.param([span("live", 2, -3)], [(142, "", 0), (2, "live", 100)], id="beyond the end"),
        pytest.param(
            [span("live", 10, 4), span("disconnected", 4, 2), span("live", 2, 0)],
            [(134, "", 0), (6, "live", 100), (2, "disconnected", 0), (2, "live", 100)],
            id="outage",
        ),
        pytest.param(
            [span("live", 2, 0.25), span("silent", 0.25, 0)],
            [(142, "", 0), (1, "live", 100), (1, "silent", 75)],
            id="part of a cell",
        ),
        pytest.param(
            [span("live", 1, 0, subscriptions=999), span("refused", 1, 0)],
            [(143, "", 0), (1, "refused", 99)],
            id="rounded down to 99",
        ),
        pytest.param(
            [span("pending", 1, 0.9), span("crashed", 0.9, 0)],
            [(143, "", 0), (1, "crashed", 0)],
            id="state with the largest part",
        ),
        pytest.param(
            [span("live", 1, 0), span("stopped", 1, 1)], [(143, "", 0), (1, "live", 100)], id="span of length zero"
        ),
    ],
)
def test_strip_has_state_and_live_percent_of_each_cell(
    spans: list[StateSpan], expected: list[tuple[int, str, int]]
) -> None:
    assert runs(*spans) == expected


def test_live_share_counts_every_subscription() -> None:
    (strip,) = build_strips([span("live", 4, 0, subscriptions=3), span("refused", 4, 0)], END)
    assert strip.live_seconds / strip.wanted_seconds == 0.75


def test_feeds_with_wanted_time_have_a_strip_in_order() -> None:
    spans = [span("live", 1, 0, feed="b"), span("live", 1, 0, feed="a"), span("live", 300, 290, feed="long ago")]
    assert [strip.feed for strip in build_strips(spans, END)] == ["a", "b"]


def wait_for(cache: CoverageCache, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Poll coverage.json until the condition holds, and return it."""
    deadline = time.monotonic() + 10
    while not condition(found := json.loads(cache.to_json())):
        assert time.monotonic() < deadline, found
    return dict(found)


def test_cache_does_not_wait_and_reads_once_at_a_time() -> None:
    release, reads = threading.Event(), []

    def read(since: datetime) -> Iterable[StateSpan]:
        reads.append(since)
        release.wait(10)
        return [StateSpan(feed="a", state="live", from_at=since, to_at=since + timedelta(days=1), subscriptions=1)]

    cache = CoverageCache(read)
    for _ in range(3):
        assert json.loads(cache.to_json())["as_of"] is None
    release.set()
    found = wait_for(cache, lambda body: body["as_of"])
    assert found["strips"][0]["runs"] == [[CELLS, "live", 100]]
    assert len(reads) == 1


def test_database_error_is_reported_without_secrets() -> None:
    def read(_: datetime) -> Iterable[StateSpan]:
        raise DatabaseUnavailable("no route for a-password-to-mask")

    redactor.add("a-password-to-mask")
    try:
        assert wait_for(CoverageCache(read), lambda body: body["error"])["error"] == "no route for ***"
    finally:
        redactor.remove("a-password-to-mask")


def test_feeds_with_the_worst_coverage_are_shown() -> None:
    def read(since: datetime) -> Iterable[StateSpan]:
        for number in range(MAX_STRIPS + 1):
            middle, end = since + timedelta(minutes=number), since + timedelta(hours=2)
            yield StateSpan(feed=f"feed-{number:03}", state="live", from_at=since, to_at=middle, subscriptions=1)
            yield StateSpan(feed=f"feed-{number:03}", state="silent", from_at=middle, to_at=end, subscriptions=1)

    found = wait_for(CoverageCache(read), lambda body: body["as_of"])
    assert [strip["feed"] for strip in found["strips"]] == [f"feed-{number:03}" for number in range(MAX_STRIPS)]
    assert found["more"] == 1
