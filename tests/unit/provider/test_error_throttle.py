from __future__ import annotations

import asyncio

import pytest

from ingestor.core.entries import Fact
from ingestor.provider.subscriptions import error_throttle
from ingestor.provider.subscriptions.error_throttle import QUOTED, ErrorThrottle

Said = list[tuple[str, str, int]]


def told(facts: list[Fact]) -> Said:
    return [(fact.detail["event"], fact.detail["text"], fact.detail.get("suppressed", 0)) for fact in facts]


def complain(to: ErrorThrottle, *texts: str, event: str = "err") -> None:
    for number, text in enumerate(texts):
        to.add(Fact("provider_error", number, {"event": event, "text": text}))


@pytest.fixture
def facts() -> list[Fact]:
    return []


@pytest.fixture
async def made(facts: list[Fact]) -> ErrorThrottle:
    return ErrorThrottle(facts.append)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(["a"], [("err", "a", 0)], id="one"),
        pytest.param(["a", "a", "a"], [("err", "a", 0), ("err", "a", 1)], id="one over and over"),
        pytest.param(["a", "b"], [("err", "a", 0), ("err", "b", 0)], id="something else"),
        pytest.param(["a", "a", "b"], [("err", "a", 0), ("err", "b", 1)], id="something else, after one was held back"),
        pytest.param(["a", "b", "a"], [("err", "a", 0), ("err", "b", 0), ("err", "a", 0)], id="an earlier one again"),
    ],
)
async def test_what_is_news_is_said_at_once_and_the_rest_at_the_end(
    made: ErrorThrottle, facts: list[Fact], texts: list[str], expected: Said
) -> None:
    complain(made, *texts)
    made.flush()
    assert told(facts) == expected


async def test_no_more_than_a_few_are_quoted_however_they_differ(made: ErrorThrottle, facts: list[Fact]) -> None:
    complain(made, *map(str, range(3000)))
    assert told(facts) == [("err", str(n), 0) for n in range(QUOTED)]
    made.flush()
    assert told(facts)[QUOTED:] == [("err", "2999", 3000 - QUOTED - 1)]


async def test_each_event_has_a_measure_of_its_own(made: ErrorThrottle, facts: list[Fact]) -> None:
    complain(made, *map(str, range(20)))
    complain(made, "x", event="error")
    assert told(facts)[-1] == ("error", "x", 0)


async def test_what_was_held_back_is_said_when_the_minute_is_over_and_begins_another(
    facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_throttle, "WINDOW_SECONDS", 0.0)
    made = ErrorThrottle(facts.append)
    complain(made, "a", "a", "a")
    for _ in range(5):  # both windows end in the loop's next steps
        await asyncio.sleep(0)
    assert told(facts) == [("err", "a", 0), ("err", "a", 1)]
    complain(made, "a")
    assert told(facts)[2:] == [("err", "a", 0)], "a quiet minute later it is news again"


async def test_after_the_end_nothing_is_said_twice(made: ErrorThrottle, facts: list[Fact]) -> None:
    complain(made, "a", "a")
    made.flush()
    made.flush()
    assert len(facts) == 2


async def test_a_complaint_keeps_the_time_at_which_it_came(made: ErrorThrottle, facts: list[Fact]) -> None:
    complain(made, "a", "a", "a")
    made.flush()
    assert [fact.at_us for fact in facts] == [0, 2]
