from __future__ import annotations

from typing import Any

import pytest

from ingestor.pipeline.assemble import Assembly

from ...support.entries import CROWD, T0, decoder, fact, frame, row


def envelope(*rows: dict[str, Any], **params: str) -> dict[str, Any]:
    return {"path": "crowd-sentiment", "params": params, "results": list(rows)}


@pytest.mark.parametrize(
    ("payload", "tickers"),
    [
        pytest.param([row("AAPL"), row("TSLA"), row("AAPL", 1)], {"AAPL", "TSLA"}, id="a list"),
        pytest.param([], set(), id="an empty list"),
        pytest.param(envelope(row("AAPL"), ticker="AAPL"), {"AAPL"}, id="an envelope"),
        pytest.param(envelope(row("AAPL")), {"AAPL"}, id="an envelope for all"),
        pytest.param(envelope(ticker="TSLA"), {"TSLA"}, id="an empty envelope"),
        pytest.param(envelope(), set(), id="an empty envelope for all"),
        pytest.param(envelope({"ticker": "TSLA"}, ticker="TSLA"), {"TSLA"}, id="rows that cannot be read"),
        pytest.param("{bad", set(), id="no JSON"),
    ],
)
def test_an_assembly_knows_what_its_data_came_for(payload: Any, tickers: set[str]) -> None:
    assembly = Assembly(1, decoder())
    assembly.add((1, frame(payload, params='{"period":"30"}')))
    wanted = {(CROWD, '{"period":"30"}', ticker) for ticker in tickers | {""}}
    assert assembly.heard == dict.fromkeys(wanted, T0)


def test_the_last_of_several_counts_and_only_what_was_heard_live() -> None:
    assembly = Assembly(1, decoder())
    assembly.add((1, frame([row("AAPL")])))
    assembly.add((2, frame([row("AAPL"), row("ON")], received_us=T0 + 5)))
    assembly.add((3, frame([row("TSLA")], source="backfill", received_us=T0 + 9)))
    assembly.add((4, frame([row("TSLA")], received_us=T0 + 9, letter=7)))
    assembly.add((5, fact(at_us=T0 + 9)))
    at = T0 + 5
    assert assembly.heard == {(CROWD, "{}", ""): at, (CROWD, "{}", "AAPL"): at, (CROWD, "{}", "ON"): at}
