"""Known rows of rolling windows are not decoded, and only those. ``test_runs`` compares what becomes of all rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ingestor.pipeline import dedup
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.plain_rows import PlainReader
from tests.support.entries import CROWD, T0, decoder, frame, row

SERIES = ("crowd-sentiment", "crowd_sentiment", "AAPL", "")
MINUTE_US = 60_000_000


def window(newest: int, value: float = 0.5, rows: int = 10) -> str:
    return json.dumps([row("AAPL", minute, value) for minute in range(newest - rows + 1, newest + 1)])


def reader() -> PlainReader:
    made = decoder()
    made.decode(frame([row()]))
    found = made.reader_of(CROWD, "{}")
    assert found is not None
    return found


def known(cache: RecentValueCache, by: PlainReader, body: str, connection: str = "a") -> tuple[int, int]:
    """(known rows that were not decoded, new values) of a response."""
    found = cache.read_new(by, body, connection)
    assert found is not None
    return found[0], len(found[2])


def rolled_cache() -> tuple[RecentValueCache, PlainReader]:
    """A cache that knows the window up to minute 11."""
    cache, by = RecentValueCache(generation_seconds=10), reader()
    assert [known(cache, by, window(newest)) for newest in (10, 11)] == [(0, 10), (0, 1)]
    return cache, by


@pytest.mark.parametrize("step", [0, 1, 3])
def test_known_rows_of_a_window_are_not_decoded(step: int) -> None:
    cache, by = rolled_cache()
    assert known(cache, by, window(11 + step)) == (9 - step, step)
    assert known(cache, by, window(12 + step)) == (8, 1)


def test_newest_row_of_a_window_may_be_restated() -> None:
    cache, by = rolled_cache()
    restated = window(11).replace("0.5}]", "0.6}]")
    assert known(cache, by, restated) == (9, 1)
    assert known(cache, by, restated) == (9, 0)


CHANGES: Sequence[Any] = [
    pytest.param(lambda cache, _: cache.discard([(SERIES, T0 + 5 * MINUTE_US)]), 1, id="a value is not current"),
    pytest.param(lambda cache, _: cache.clear(), 10, id="nothing is valid"),
    pytest.param(lambda cache, _: [cache.rotate(at) for at in (11, 22)], 10, id="all have expired"),
    pytest.param(lambda cache, by: known(cache, by, window(11, value=0.7), "b"), 10, id="another connection differs"),
    pytest.param(lambda cache, _: cache.discard_others([(SERIES, T0 + 5 * MINUTE_US, 0.7, 0)]), 1, id="REST differs"),
    pytest.param(lambda cache, by: known(cache, by, json.dumps([row(minute=5, value=0.7)])), 1, id="a row is restated"),
    pytest.param(
        lambda cache, by: [known(cache, by, window(11), name) for name in "bcde"], 10, id="the connection has no place"
    ),
]


@pytest.mark.parametrize(("change", "new"), CHANGES)
def test_window_is_decoded_whole_once_a_value_is_no_longer_known(change: Any, new: int) -> None:
    cache, by = rolled_cache()
    change(cache, by)
    assert known(cache, by, window(11)) == (0, new)


def test_window_of_another_origin_is_decoded_whole() -> None:
    cache, _ = rolled_cache()
    assert known(cache, reader(), window(11)) == (0, 0)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(window(11)[:-1], id="no end"),
        pytest.param(window(11)[:-1] + ",]", id="a comma at the end"),
        pytest.param(window(11)[: window(11).rindex("{")] + "]", id="no last row"),
        pytest.param("{" + window(11)[1:], id="another bracket"),
        pytest.param("[" + window(11)[3:], id="half a row"),
        pytest.param(window(11)[:-1] + ",1]", id="a number for a row"),
        pytest.param(window(11) + "]", id="a second end"),
    ],
)
def test_broken_window_is_left_to_the_decoder(body: str) -> None:
    cache, by = rolled_cache()
    assert cache.read_new(by, body, "a") is None


def test_window_with_two_values_of_a_time_is_decoded_whole() -> None:
    cache, by = rolled_cache()
    twice = f"{window(11)[:-1]}, {json.dumps(row(minute=5, value=0.7))}]"
    assert [known(cache, by, twice) for _ in range(2)] == [(0, 1), (0, 2)]


def test_window_with_a_brace_in_a_text_is_decoded_whole() -> None:
    cache, by = RecentValueCache(), reader()
    bodies = [window(newest).replace('"ticker"', '"ticker": "{", "ticker"', 9) for newest in (10, 11, 12)]
    assert [known(cache, by, body) for body in bodies] == [(0, 10), (0, 1), (0, 1)]


def test_texts_of_windows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "WINDOW_CHARACTERS", 2 * len(window(10)))
    cache, by = RecentValueCache(), reader()
    for ticker in ("AAPL", "ON", "TSLA"):
        for newest in (10, 11):
            known(cache, by, window(newest).replace("AAPL", ticker))
    held = [values.window for found in cache._by_connection.values() for values in found.values() if values.window]
    assert [kept._body for kept in held if kept._body] == [window(11).replace("AAPL", "TSLA")]
    assert [known(cache, by, window(12).replace("AAPL", ticker))[0] for ticker in ("TSLA", "ON", "AAPL")] == [8, 0, 0]
