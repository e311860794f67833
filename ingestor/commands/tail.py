"""Read observations back from the database as they are committed, by any instance.

The ledger names the entries that were committed since the last poll, their payloads contain the keys of their values,
and these keys find what was recorded. So a poll takes time in proportion to the new rows, reads each recorded value
once, and needs no index on `samples`, which would slow down every insert.
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
from ingestor.store.read.status_queries import Record
from ingestor.store.read.tail import CommittedBatch, ObservationKey

# Without payloads, only so many of the newest values of each series are read. A first response has about 60.
VALUES_PER_SERIES = 100


@dataclass(frozen=True, slots=True)
class NewObservations:
    """Values that one batch recorded. ``missing`` is how many more there were that could not be found."""

    records: list[Record]
    missing: int = 0


class Follower:
    """Reads every value that is recorded after its creation, once. For one ticker, or (empty) for all."""

    def __init__(self, engine: Engine, ticker: str = "") -> None:
        """Raises DatabaseUnavailable."""
        self._engine = engine
        self._ticker = ticker
        self._decoder = Decoder(catalog.metrics_of, catalog.feed_name)
        self._positions = tail.load_positions(engine)

    def latest(self, limit: int) -> list[Record]:
        """Return the newest observations that were recorded before its creation."""
        records = tail.latest_observations(self._engine, limit=limit, ticker=self._ticker)
        return [record for record in records if record["seq"] <= self._positions.get(record["instance_id"], 0)]

    def poll(self) -> Iterator[NewObservations]:
        """Yield what was committed since the last poll, by batch. Raises DatabaseUnavailable; poll again then."""
        for instance_id, position in sorted(tail.load_positions(self._engine).items()):
            while (done := self._positions.get(instance_id, 0)) < position:
                batch = tail.next_batch(self._engine, instance_id, done)
                if batch is None:  # the ledger was pruned since the last poll
                    batch = CommittedBatch(instance_id, done + 1, position, 1, 1)
                new = self._find(batch) if batch.value_count else NewObservations([])
                self._positions[instance_id] = batch.last_seq
                yield new

    def _find(self, batch: CommittedBatch) -> NewObservations:
        payloads = tail.batch_payloads(self._engine, batch)
        if len(payloads) == batch.payload_count:
            keys = {key for payload in payloads for key in self._keys(payload)}
            return NewObservations(tail.recorded_values(self._engine, batch, keys))
        records = tail.newest_of_batch(self._engine, batch, per_series=VALUES_PER_SERIES)
        selected = [record for record in records if self._ticker in ("", record["ticker"])]
        return NewObservations(selected, max(0, batch.value_count - len(records)))

    def _keys(self, payload: dict[str, Any]) -> Iterator[ObservationKey]:
        decoded = self._decoder.decode(rebuild_frame(payload))
        return ((series, ts_us) for series, ts_us, _, _ in decoded.observations if self._ticker in ("", series[2]))
