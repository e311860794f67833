"""Observations as they are committed, by whichever instance, read back from the database that they were committed to.

The ledger tells which entries were committed since the last look, their payloads which values stood in them, and the
keys of those find what was recorded. So a look costs what has come since, however many samples there are, and every
recorded value is seen once: no index on the samples is needed for it, which each of them would pay for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ingestor.pipeline.dead_letters import rebuild_frame
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from ingestor.store.engine import Engine
from ingestor.store.read import tail
from ingestor.store.read.status import Record
from ingestor.store.read.tail import CommittedBatch, ObservationKey

# Where payloads are not kept: a look is at the newest so many of each series. A first answer has some 60.
VALUES_PER_SERIES = 100


@dataclass(frozen=True, slots=True)
class NewObservations:
    """Values that one batch recorded. ``missing``: how many more it did that could not be found."""

    records: list[Record]
    missing: int = 0


class Follower:
    """Sees every value recorded after it was made, once. Of one ticker, or of all."""

    def __init__(self, engine: Engine, ticker: str = "") -> None:
        """Raises DatabaseUnavailable."""
        self._engine = engine
        self._ticker = ticker
        self._decoder = Decoder(catalog.metrics_of, catalog.feed_name)
        self._positions = tail.load_positions(engine)

    def latest(self, limit: int) -> list[Record]:
        """The last observations that were there already when it was made."""
        last = tail.latest_observations(self._engine, limit=limit, ticker=self._ticker)
        return [one for one in last if one["seq"] <= self._positions.get(one["instance_id"], 0)]

    def poll(self) -> Iterator[NewObservations]:
        """What was committed since the last look, a batch at a time. Raises DatabaseUnavailable; look again then."""
        for instance_id, position in sorted(tail.load_positions(self._engine).items()):
            while (seen := self._positions.get(instance_id, 0)) < position:
                batch = tail.next_batch(self._engine, instance_id, seen)
                if batch is None:  # the journal is kept for less than a look takes
                    batch = CommittedBatch(instance_id, seen + 1, position, 1, 1)
                found = self._find(batch) if batch.value_count else NewObservations([])
                self._positions[instance_id] = batch.last_seq
                yield found

    def _find(self, batch: CommittedBatch) -> NewObservations:
        payloads = tail.batch_payloads(self._engine, batch)
        if len(payloads) == batch.payload_count:
            keys = {key for one in payloads for key in self._keys(one)}
            return NewObservations(tail.recorded_values(self._engine, batch, keys))
        found = tail.newest_of_batch(self._engine, batch, per_series=VALUES_PER_SERIES)
        wanted = [one for one in found if self._ticker in ("", one["ticker"])]
        return NewObservations(wanted, max(0, batch.value_count - len(found)))

    def _keys(self, payload: dict[str, Any]) -> Iterator[ObservationKey]:
        decoded = self._decoder.decode(rebuild_frame(payload))
        return ((series, ts_us) for series, ts_us, _, _ in decoded.observations if self._ticker in ("", series[2]))
