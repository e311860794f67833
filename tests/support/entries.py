"""Short ways to write frames and facts in tests."""

from __future__ import annotations

import json
from typing import Any

from ingestor.core.entries import Fact, Frame, FrameRun, LetterOrigin, Source, State
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog

CROWD = "/real-time/crowd-sentiment"
T0 = 1_767_225_600_000_000  # 2026-01-01 00:00 UTC, µs


def decoder(*, fast: bool = True) -> Decoder:
    return Decoder(catalog.metrics_of, catalog.feed_name, fast=fast)


def run(*frames: Frame) -> FrameRun:
    """A run of frames that have their connection, source, event, path and params in common."""
    common = frames[0].connection_id, frames[0].source, frames[0].event, frames[0].path, frames[0].params
    return FrameRun(*common, [frame.received_us for frame in frames], [frame.text for frame in frames])


def row(ticker: str = "AAPL", minute: int = 0, value: Any = 0.5, field: str = "average_sentiment") -> dict[str, Any]:
    return {"ts": f"2026-01-01T{minute // 60:02}:{minute % 60:02}:00.000Z", "ticker": ticker, field: value}


def frame(
    payload: Any,
    *,
    received_us: int = T0,
    event: str = "res",
    path: str = CROWD,
    source: Source = "stream",
    params: str = "{}",
    retry_of: int | None = None,
    retry_origin: LetterOrigin | None = None,
    connection: str = "c0ffee000001",
) -> Frame:
    """A frame with this payload: a JSON value, or text as it is."""
    body = payload if isinstance(payload, str) else json.dumps(payload)
    text = f'42["{event}",{body}]' if source == "stream" else body
    return Frame(received_us, connection, source, event, path, params, text, retry_of, retry_origin)


def fact(kind: str = "connected", *, at_us: int = T0, state: State | None = None, **options: Any) -> Fact:
    subscriptions = tuple((CROWD, "get", json.dumps({"ticker": t})) for t in options.pop("tickers", ()))
    return Fact(kind, at_us, options.pop("detail", {}), state, subscriptions, options.pop("since_us", None))
