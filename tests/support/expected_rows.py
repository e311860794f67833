"""What a database must hold after a server has emitted these rows: the judge's side, independent of the decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from ingestor.provider.catalog import FEEDS, KEY_FIELDS, base_name


class Key(NamedTuple):
    """One sample."""

    feed: str
    metric: str
    ticker: str
    user_id: str
    ts: str  # as the provider writes it


class Emitted(Protocol):
    """One data event, of the simulator or of a Node peer."""

    @property
    def path(self) -> str: ...

    @property
    def rows(self) -> list[dict[str, Any]]: ...


def values(emitted: Iterable[Emitted]) -> Mapping[Key, list[float]]:
    """Sample → every value it was given, in the order of emission, repetitions left out; the last is current."""
    found: dict[Key, list[float]] = defaultdict(list)
    for emission in emitted:
        add(emission, found)
    return found


def add(emission: Emitted, found: dict[Key, list[float]]) -> None:
    """One more, for who cannot keep them all."""
    for key, value in _samples(emission):
        if found[key][-1:] != [value]:
            found[key].append(value)


def current(emitted: Iterable[Emitted]) -> dict[Key, float]:
    """Sample → the value that must be current."""
    return {key: given[-1] for key, given in values(emitted).items()}


def _samples(emission: Emitted) -> Iterable[tuple[Key, float]]:
    feed = base_name(emission.path)
    metrics = FEEDS[feed].metrics
    for row in emission.rows:
        for field, value in row.items():
            if field not in KEY_FIELDS:
                yield Key(feed, metrics[field], row["ticker"], row.get("user_id", ""), row["ts"]), float(value)
