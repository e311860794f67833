"""Clock skew: the timestamp of a feed's last envelope minus the time when we received it.

It is measured and reported, and has no other effect: the documented samples are exactly four hours off (US Eastern time
labeled as UTC).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

ALARM_SECONDS = 1800.0  # no envelope is delayed that long: it is the clock, or its time zone
MAX_FEEDS = 100  # an envelope may name anything


class ClockSkewMonitor:
    """The skew of each feed. Other threads read ``seconds``, so it is replaced as a whole."""

    def __init__(self) -> None:
        self.seconds: Mapping[str, float] = MappingProxyType({})

    def update(self, measured_us: Mapping[str, int]) -> Iterator[tuple[str, float]]:
        """Add the skews of a batch. Yields feed and seconds of each feed that has just become hours off."""
        skews = dict(self.seconds)
        for feed, skew_us in measured_us.items():
            if feed not in skews and len(skews) >= MAX_FEEDS:
                continue
            skews[feed] = skew_us / 1_000_000
            if abs(skews[feed]) >= ALARM_SECONDS > abs(self.seconds.get(feed, 0.0)):
                yield feed, skews[feed]
        self.seconds = MappingProxyType(skews)


def format_skew(seconds: float) -> str:
    """``3h59m58s behind ours``."""
    whole = round(abs(seconds))
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    text = "".join(f"{count}{unit}" for count, unit in parts if count) or "0s"
    return f"{text} {'behind' if seconds < 0 else 'ahead of'} ours"
