from __future__ import annotations

from typing import Any

from ingestor.core.entries import Fact
from ingestor.daemon.fact_limit import FactLimit

DAY_SECONDS = 86_400


def fact(kind: str = "config_reloaded", **detail: Any) -> Fact:
    return Fact(kind, 0, detail)


def test_news_of_a_day_with_a_full_spool_is_a_fact_per_hour() -> None:
    limit = FactLimit(lambda: True)
    selected = [entry for now in range(DAY_SECONDS) for entry in limit.select(fact(sha256=str(now)), now)]
    assert len(selected) == 24
    assert sum(1 + entry.detail.get("suppressed", 0) for entry in [*selected, *limit.flush()]) == DAY_SECONDS


def test_paths_are_counted_apart() -> None:
    limit = FactLimit(lambda: True)
    facts = [fact("connect_failed", path=path) for path in ("/a", "/b", "/a")]
    assert [entry.detail["path"] for each in facts for entry in limit.select(each, 0)] == ["/a", "/b"]


def test_what_is_needed_later_always_passes() -> None:
    limit = FactLimit(lambda: True)
    changes = [
        Fact("token_failed", 0, {}, "token_failed", (("/a", "get", "{}"),)),
        Fact("clock_restarted", 0, {}, since_us=1, until_us=2),
        Fact("stopped", 0, {}),
        Fact("lost", 0, {}),
        Fact("backfill_requested", 0, {}),
    ]
    for change in changes:
        assert [*limit.select(change, 0), *limit.select(change, 1)] == [change, change]


def test_nothing_is_held_back_while_there_is_space() -> None:
    limit = FactLimit(lambda: False)
    assert sum(len(list(limit.select(fact(), now))) for now in range(1000)) == 1000
    assert limit.flush() == []


def test_spool_that_is_full_again_and_again_is_limited() -> None:
    full = [True]
    limit = FactLimit(lambda: full[0])
    count = 0
    for now in range(1000):
        full[0] = now % 2 == 0
        count += len(list(limit.select(fact("spool_level"), now)))
    assert count == 1
    assert [entry.detail for entry in limit.select(fact("spool_level"), 9000)] == [{"suppressed": 998}, {}]
    assert len([entry for now in range(9) for entry in limit.select(fact("spool_level"), 9001 + now)]) == 9
