"""What was stored as a frame again: the same decode, and for a dead letter the same write under a seq of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingestor.pipeline.entry import Frame
from ingestor.store.times import microseconds


def frame_of(stored: Mapping[str, Any]) -> Frame:
    """The frame that a row of ``payloads`` was, or that tries one of ``dead_letters`` again: stamped with its receipt.

    A row's letter is a frame of that row.
    """
    source, event, body = stored["source"], stored["event"], stored["body"]
    wrapped = source == "stream" and event and not body.startswith("42")  # a frame that never was one keeps its text
    return Frame(
        microseconds(stored["received_at"]),
        stored["connection_id"],
        source,
        event,
        stored["path"],
        stored["params"],
        f'42["{event}",{body}]' if wrapped else body,
        stored.get("dead_letter_id"),
    )
