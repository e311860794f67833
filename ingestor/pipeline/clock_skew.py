"""How far the provider's publish clock is from ours: the stamp of a feed's last envelope, less its receipt.

It is measured and told, and nothing is made of it: printed samples are exactly four hours off (US Eastern time that is
labelled as UTC).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

ALARM_SECONDS = 1800.0  # no envelope is on its way for so long: it is the clock, or its zone
MAX_FEEDS = 100  # an envelope may name anything


class ClockSkewMonitor:
    """The skew of each feed. Read by other threads: ``seconds`` is replaced whole."""

    def __init__(self) -> None:
        self.seconds: Mapping[str, float] = MappingProxyType({})
        self._told: set[str] = set()

    def update(self, measured_us: Mapping[str, int]) -> Iterator[tuple[str, float]]:
        """Take in a batch's. Gives the feeds that are off by hours and were not a moment ago, each with its seconds."""
        known = dict(self.seconds)
        for feed, skew_us in measured_us.items():
            if feed not in known and len(known) >= MAX_FEEDS:
                continue
            known[feed] = skew_us / 1_000_000
            if abs(known[feed]) < ALARM_SECONDS:
                self._told.discard(feed)
            elif feed not in self._told:
                self._told.add(feed)
                yield feed, known[feed]
        self.seconds = MappingProxyType(known)


def format_skew(seconds: float) -> str:
    """``3h59m58s behind ours``."""
    whole = round(abs(seconds))
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    told = "".join(f"{count}{unit}" for count, unit in parts if count) or "0s"
    return f"{told} {'behind' if seconds < 0 else 'ahead of'} ours"
