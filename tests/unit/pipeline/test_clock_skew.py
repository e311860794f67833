from __future__ import annotations

import pytest

from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.clock_skew import MAX_FEEDS, ClockSkewMonitor, format_skew
from tests.support.entries import T0, decoder, frame, row

HOUR_US = 3_600_000_000


def envelope(published: str | None, path: str = "crowd-sentiment") -> dict[str, object]:
    return {"path": path, "params": {}, "timestamp": published, "results": [row()]}


def test_skew_is_that_of_the_last_live_envelope_of_a_feed() -> None:
    builder = BatchBuilder(1, decoder())
    builder.add((1, frame(envelope("2025-12-31T19:00:00Z"), received_us=T0)))
    builder.add((2, frame(envelope("2025-12-31T20:00:00.5Z"), received_us=T0)))
    builder.add((3, frame(envelope("2026-01-01T00:00:09Z", "user-sentiment"), received_us=T0)))
    builder.add((4, frame(envelope("2026-01-01T00:00:00Z"), received_us=T0, source="snapshot")))
    builder.add((5, frame(envelope("2026-01-01T00:00:00Z"), received_us=T0, retry_of=3)))
    builder.add((6, frame(envelope("never"), received_us=T0)))
    builder.add((7, frame([row()], received_us=T0)))
    assert builder.skews_us == {"crowd-sentiment": -4 * HOUR_US + 500_000, "user-sentiment": 9_000_000}


def test_skew_of_hours_is_reported_once_until_corrected() -> None:
    skews = ClockSkewMonitor()
    assert list(skews.update({"a": -4 * HOUR_US, "b": -2_000_000})) == [("a", -14_400.0)]
    assert list(skews.update({"a": -4 * HOUR_US - 1})) == []
    assert skews.seconds == {"a": -14_400.000001, "b": -2.0}
    assert list(skews.update({"a": 0})) == []
    assert list(skews.update({"a": HOUR_US})) == [("a", 3600.0)]


def test_number_of_feeds_is_bounded() -> None:
    skews = ClockSkewMonitor()
    list(skews.update({str(number): 0 for number in range(MAX_FEEDS + 10)}))
    list(skews.update({"0": 1_000_000, "another": 0}))
    assert len(skews.seconds) == MAX_FEEDS
    assert skews.seconds["0"] == 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-14_400, "4h behind ours"),
        (-14_398.2, "3h59m58s behind ours"),
        (61, "1m1s ahead of ours"),
        (0.2, "0s ahead of ours"),
    ],
)
def test_format_skew(seconds: float, expected: str) -> None:
    assert format_skew(seconds) == expected
