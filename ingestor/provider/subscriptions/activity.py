"""Which tickers data came for, as the writer finds in the frames that it decodes: the receive path never looks inside.

It lags as the writer does. So that a database that is away makes nobody silent, it also says how far it has got.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ingestor.core.entries import Channel


class ActivitySpan(NamedTuple):
    """When the first and the last data came, by our wall clock."""

    first_us: int
    last_us: int


class ActivityTracker:
    """What was heard since it was last asked. The writer's thread notes, the event loop takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: frozenset[Channel] = frozenset()
        self._news: dict[Channel, ActivitySpan] = {}
        self.upto_seq = 0  # every entry up to here was decoded, and what it says is noted

    def set_channels(self, channels: Iterable[Channel]) -> None:
        """Keep these from now on, and no others: whatever the provider names, memory is bounded."""
        self._wanted = frozenset(channels)

    def record(self, heard: Mapping[Channel, int], upto_seq: int) -> None:
        """When each was received, of the entries up to this one. Called in the writer's thread."""
        wanted = heard.keys() & self._wanted
        with self._lock:
            for channel in wanted:
                before = self._news.get(channel)
                self._news[channel] = ActivitySpan(before.first_us if before else heard[channel], heard[channel])
            self.upto_seq = upto_seq

    def take(self) -> Mapping[Channel, ActivitySpan]:
        """What was heard since the last time."""
        with self._lock:
            news, self._news = self._news, {}
        return news
