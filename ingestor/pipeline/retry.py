"""A dead letter as a frame again: the same decode and write, under a seq of its own, with the stamp of its receipt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingestor.pipeline.entry import Frame
from ingestor.store.times import microseconds


def frame_of(letter: Mapping[str, Any]) -> Frame:
    """The frame that tries ``letter`` (a row of ``dead_letters``) again. A row's letter is a frame of that row."""
    source, event, body = letter["source"], letter["event"], letter["body"]
    wrapped = source == "stream" and event and not body.startswith("42")  # a frame that never was one keeps its text
    return Frame(
        microseconds(letter["received_at"]),
        letter["connection_id"],
        source,
        event,
        letter["path"],
        letter["params"],
        f'42["{event}",{body}]' if wrapped else body,
        letter["dead_letter_id"],
    )
