from __future__ import annotations

import asyncio

import pytest

from ingestor.core.entries import Fact
from ingestor.provider.subscriptions import error_throttle
from ingestor.provider.subscriptions.error_throttle import MAX_QUOTED, ErrorThrottle

Recorded = list[tuple[str, str, int]]


def summary(facts: list[Fact]) -> Recorded:
    """The event, the text and the number of suppressed errors of each fact."""
    return [(fact.detail["event"], fact.detail["text"], fact.detail.get("suppressed", 0)) for fact in facts]


def add_errors(throttle: ErrorThrottle, *texts: str, event: str = "err") -> None:
    for number, text in enumerate(texts):
        throttle.add(Fact("provider_error", number, {"event": event, "text": text}))


@pytest.fixture
def facts() -> list[Fact]:
    return []


@pytest.fixture
async def throttle(facts: list[Fact]) -> ErrorThrottle:
    return ErrorThrottle(facts.append)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(["a"], [("err", "a", 0)], id="one"),
        pytest.param(["a", "a", "a"], [("err", "a", 0), ("err", "a", 1)], id="repeated"),
        pytest.param(["a", "b"], [("err", "a", 0), ("err", "b", 0)], id="different text"),
        pytest.param(["a", "a", "b"], [("err", "a", 0), ("err", "b", 1)], id="different text after a suppressed one"),
        pytest.param(["a", "b", "a"], [("err", "a", 0), ("err", "b", 0), ("err", "a", 0)], id="earlier text again"),
    ],
)
async def test_new_text_is_recorded_at_once_and_the_rest_counted(
    throttle: ErrorThrottle, facts: list[Fact], texts: list[str], expected: Recorded
) -> None:
    add_errors(throttle, *texts)
    throttle.flush()
    assert summary(facts) == expected


async def test_number_of_quoted_texts_is_bounded(throttle: ErrorThrottle, facts: list[Fact]) -> None:
    add_errors(throttle, *map(str, range(3000)))
    assert summary(facts) == [("err", str(n), 0) for n in range(MAX_QUOTED)]
    throttle.flush()
    assert summary(facts)[MAX_QUOTED:] == [("err", "2999", 3000 - MAX_QUOTED - 1)]


async def test_each_event_has_its_own_limit(throttle: ErrorThrottle, facts: list[Fact]) -> None:
    add_errors(throttle, *map(str, range(20)))
    add_errors(throttle, "x", event="error")
    assert summary(facts)[-1] == ("error", "x", 0)


async def test_suppressed_errors_are_recorded_at_the_end_of_the_window(
    facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_throttle, "WINDOW_SECONDS", 0.0)
    throttle = ErrorThrottle(facts.append)
    add_errors(throttle, "a", "a", "a")
    for _ in range(5):  # both windows end in the loop's next iterations
        await asyncio.sleep(0)
    assert summary(facts) == [("err", "a", 0), ("err", "a", 1)]
    add_errors(throttle, "a")
    assert summary(facts)[2:] == [("err", "a", 0)], "after a quiet window it is recorded at once again"


async def test_flush_twice_records_nothing_twice(throttle: ErrorThrottle, facts: list[Fact]) -> None:
    add_errors(throttle, "a", "a")
    throttle.flush()
    throttle.flush()
    assert len(facts) == 2


async def test_suppressed_error_keeps_its_time(throttle: ErrorThrottle, facts: list[Fact]) -> None:
    add_errors(throttle, "a", "a", "a")
    throttle.flush()
    assert [fact.at_us for fact in facts] == [0, 2]
