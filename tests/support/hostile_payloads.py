"""Strategies for what a provider should not send: bodies of frames, whole or with a piece taken out or put in."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=()), max_size=20)
_odd = st.sampled_from(
    ["\0", "\ud800", "%s", ":x", "'", "\u202e", "A" * 65, "2026-01-01T00:00:00Z", "results", "1e999"]
)
_leaf = st.none() | st.booleans() | st.integers() | st.integers(2**60, 2**80) | st.floats() | texts | _odd
_anything = st.recursive(
    _leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | _odd, inner, max_size=3), max_leaves=8
)


def _mostly(good: list[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.sampled_from(good), st.sampled_from(good), _leaf, _anything)


_NO_FIELDS: dict[str, Any] = {}
_rows = st.fixed_dictionaries(
    _NO_FIELDS,
    optional={
        "ts": _mostly(["2026-01-01T00:00:00.000Z", "2026-01-01T00:01:00Z", "2026-01-01", "9999-12-31T23:59:59Z"]),
        "ticker": _mostly(["AAPL", "ON"]),
        "user_id": _mostly([None, "", 7, "7"]),
        "average_sentiment": _mostly([0.5, "0.25", 1]),
        "crowd_sentiment": _leaf,
        "volume": _leaf,
    },
)
_envelopes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"results": st.lists(_rows, max_size=3) | _anything},
    optional={
        "path": _mostly(["crowd-sentiment", "/real-time/user-sentiment", "unheard-of"]),
        "params": st.dictionaries(texts | st.sampled_from(["ticker", "period"]), _leaf, max_size=2) | _leaf,
        "timestamp": _mostly(["2026-01-01T00:00:00.000Z"]),
    },
)
payloads = st.builds(
    json.dumps, st.lists(_rows | _leaf, max_size=5) | _envelopes | _anything, ensure_ascii=st.booleans()
)


@st.composite
def cut_payloads(draw: st.DrawFn) -> str:
    """JSON with a piece of it taken out or put in."""
    whole = draw(payloads)
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    return whole[:start] + draw(texts | _odd | st.sampled_from('[]{},:"\\')) + whole[end:]
