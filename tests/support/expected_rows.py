"""Compute the samples that a database must contain after a server emitted rows, independently of the decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from ingestor.provider.catalog import FEEDS, base_name

KEY_FIELDS = frozenset({"ts", "ticker", "user_id"})
PADDING = "padding"  # a field that no provider sends, and the daemon does not store


class Key(NamedTuple):
    """The key of a sample."""

    feed: str
    metric: str
    ticker: str
    user_id: str
    ts: str  # in the provider's format


class Emitted(Protocol):
    """A data event of the simulator or of a Node server."""

    @property
    def path(self) -> str: ...

    @property
    def rows(self) -> list[dict[str, Any]]: ...


def values(emitted: Iterable[Emitted]) -> Mapping[Key, list[float]]:
    """Map each sample to its values in the order of emission, without repetitions. The last one is current."""
    found: dict[Key, list[float]] = defaultdict(list)
    for emission in emitted:
        add(emission, found)
    return found


def add(emission: Emitted, found: dict[Key, list[float]]) -> None:
    """Add one emission, for callers that cannot keep all of them."""
    for key, value in _samples(emission):
        if found[key][-1:] != [value]:
            found[key].append(value)


def current(emitted: Iterable[Emitted]) -> dict[Key, float]:
    """Map each sample to the value that must be current."""
    return {key: history[-1] for key, history in values(emitted).items()}


def _samples(emission: Emitted) -> Iterable[tuple[Key, float]]:
    feed = base_name(emission.path)
    metrics = FEEDS[feed].metrics
    for row in emission.rows:
        for field, value in row.items():
            if field not in KEY_FIELDS and field != PADDING:
                yield Key(feed, metrics[field], row["ticker"], row.get("user_id", ""), row["ts"]), float(value)
