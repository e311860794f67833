"""Report for which tickers data was received. The writer finds out as it decodes; the receive path never parses frames.

Lags behind by as much as the writer does. ``upto_seq`` reports progress, so that a database outage is not mistaken for
silence.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ingestor.core.entries import Channel


class ActivitySpan(NamedTuple):
    """When the first and the last data was received, by our wall clock."""

    first_us: int
    last_us: int


class ActivityTracker:
    """Collects activity until it is taken. The writer's thread records, the event loop takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: frozenset[Channel] = frozenset()
        self._activity: dict[Channel, ActivitySpan] = {}
        self.upto_seq = 0  # every entry up to here was decoded, and its activity recorded

    def set_channels(self, channels: Iterable[Channel]) -> None:
        """Track these channels and no others, so that memory is bounded whatever names the provider sends."""
        self._channels = frozenset(channels)

    def record(self, received_us: Mapping[Channel, int], upto_seq: int) -> None:
        """Record when each channel last had data in the entries up to ``upto_seq``. Called in the writer's thread."""
        channels = received_us.keys() & self._channels
        with self._lock:
            for channel in channels:
                before, last_us = self._activity.get(channel), received_us[channel]
                self._activity[channel] = ActivitySpan(before.first_us if before else last_us, last_us)
            self.upto_seq = upto_seq

    def take(self) -> Mapping[Channel, ActivitySpan]:
        """Return the activity since the last call."""
        with self._lock:
            activity, self._activity = self._activity, {}
        return activity
