from __future__ import annotations

import json
from typing import Any

import pytest

from ingestor.core.entries import UNNAMED, Frame
from ingestor.pipeline.batch_builder import BatchBuilder
from tests.support.entries import CROWD, T0, decoder, fact, frame, row, run


def envelope(*rows: dict[str, Any], **params: str) -> dict[str, Any]:
    return {"path": "crowd-sentiment", "params": {"period": "30"} | params, "results": list(rows)}


def channels(given: Frame) -> set[str]:
    """The tickers of the channels for which a frame has data."""
    builder = BatchBuilder(1, decoder())
    builder.add((1, given))
    assert {(path, params) for path, params, _ in builder.last_received_us} <= {(given.path, given.params)}
    return {ticker for _, _, ticker in builder.last_received_us}


@pytest.mark.parametrize(
    ("payload", "tickers"),
    [
        pytest.param([row("AAPL"), row("TSLA"), row("AAPL", 1)], {"", "AAPL", "TSLA"}, id="a list"),
        pytest.param([], {"", UNNAMED}, id="an empty list"),
        pytest.param(envelope(row("AAPL"), ticker="AAPL"), {"", "AAPL"}, id="an envelope"),
        pytest.param(envelope(row("AAPL"), ticker="TSLA"), {"", "AAPL"}, id="an envelope that names another ticker"),
        pytest.param(envelope(row("AAPL")), {"", "AAPL"}, id="an envelope for all"),
        pytest.param(envelope(ticker="TSLA"), {"", "TSLA"}, id="an empty envelope"),
        pytest.param(envelope(), {"", UNNAMED}, id="an empty envelope for all"),
        pytest.param(envelope({"ticker": "TSLA"}, ticker="TSLA"), {"", "TSLA"}, id="rows that cannot be read"),
        pytest.param(envelope(row("AAPL"), period="60"), set(), id="an envelope of another feed"),
        pytest.param({"path": "tweet-buzz", "results": []}, set(), id="an empty envelope of another feed"),
        pytest.param([{"ticker": "AAPL"}], {""}, id="no row that can be read"),
        pytest.param("{bad", {""}, id="no JSON"),
    ],
)
def test_builder_records_the_channels_of_its_data(payload: Any, tickers: set[str]) -> None:
    assert channels(frame(payload, params='{"period":"30"}')) == tickers


@pytest.mark.parametrize(
    ("payload", "tickers"),
    [
        ([row() | {"user_id": "7"}, row("TSLA") | {"user_id": 8}], {"", "AAPL"}),
        ([row("TSLA") | {"user_id": 8}, row("TSLA")], set()),
        ([], {"", UNNAMED}),
        ({"path": "user-sentiment", "params": {"user_id": "7"}, "results": []}, {"", UNNAMED}),
        ({"path": "user-sentiment", "params": {"user_id": "8"}, "results": []}, set()),
    ],
)
def test_data_of_another_user_does_not_count(payload: Any, tickers: set[str]) -> None:
    text = json.dumps(payload).replace("average_sentiment", "sentiment")
    assert channels(frame(text, path="/real-time/user-sentiment", params='{"user_id":"7"}')) == tickers


def test_builder_records_the_last_live_receipt_of_a_channel() -> None:
    builder = BatchBuilder(1, decoder())
    builder.add((1, frame([row("AAPL")])))
    builder.add((2, frame([row("AAPL"), row("ON")], received_us=T0 + 5)))
    builder.add((3, frame([row("TSLA")], source="backfill", received_us=T0 + 9)))
    builder.add((4, frame([row("TSLA")], received_us=T0 + 9, retry_of=7)))
    builder.add((5, fact(at_us=T0 + 9)))
    at = T0 + 5
    assert builder.last_received_us == {(CROWD, "{}", ""): at, (CROWD, "{}", "AAPL"): at, (CROWD, "{}", "ON"): at}


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param([row("AAPL")], id="plain rows"),
        pytest.param(envelope(row("AAPL")) | {"timestamp": "2026-01-01T00:00:00.000Z"}, id="an envelope"),
    ],
)
def test_old_entries_that_are_built_again_count_as_no_receipt(payload: Any) -> None:
    frames = [frame(payload, path="crowd-sentiment", params='{"period":"30"}', received_us=T0 + n) for n in range(4)]
    builders = [BatchBuilder(1, decoder()) for _ in range(2)]
    for builder, news_after_seq in zip(builders, (3, 4), strict=True):
        builder.news_after_seq = news_after_seq
        builder.add((1, run(*frames)))
    with_new, all_old = builders
    assert set(with_new.last_received_us.values()) == {T0 + 3}
    assert (all_old.last_received_us, all_old.skews_us) == ({}, {})


def values_and_seqs(*frames: Frame) -> list[tuple[float, int]]:
    """(value, seq) of what goes to the database."""
    builder = BatchBuilder(1, decoder())
    for entry in enumerate(frames, 1):
        builder.add(entry)
    batch = builder.batch
    assert batch.deduplicated_rows + len(batch.rows) == batch.row_count == len(frames)
    return [(row.value, row.seq) for row in batch.rows]


@pytest.mark.parametrize(
    "options", [{}, {"source": "snapshot"}, {"retry_of": 7}], ids=["live", "a snapshot", "a retry"]
)
def test_repeated_value_is_written_each_time_without_dedup(options: dict[str, Any]) -> None:
    # Between any two of them another instance may have written another value; then each of them counts.
    same = frame([row(value=1)], **options)
    assert values_and_seqs(same, same, same, same) == [(1.0, 1), (1.0, 2), (1.0, 3), (1.0, 4)]
