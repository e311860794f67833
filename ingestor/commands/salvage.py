"""Write what can be read of a spool that was set aside: each entry once, under an instance of its own.

A ledger has no holes, but the readable entries do: so they get new numbers, in the same order. The first entry of the
new instance is a fact with the ranges of the old numbers. With it, a repetition after an interruption gives the same
entries the same numbers, and the position in the database says which of them were written.
Coverage is not written: between two readable chunks anything may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ingestor import __version__
from ingestor.config import Config
from ingestor.core.clock import wall_us
from ingestor.core.entries import Entry, Fact, Frame
from ingestor.daemon.factory import lock_database
from ingestor.errors import AlreadyLocked, BatchRejected, PositionConflict, SpoolFailed
from ingestor.pipeline.batch_builder import BatchBuilder, rejected_batch
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from ingestor.spool.salvage import SalvagedSpool, SeqRange
from ingestor.spool.spool import QUARANTINE_PREFIX
from ingestor.store import migrate
from ingestor.store.engine import Engine, repeatable_read, translate_errors
from ingestor.store.open_database import open_database
from ingestor.store.read.salvage_state import SALVAGED, SpoolOrigin, find_origin, find_salvage
from ingestor.store.write.batch import Batch, WriteResult
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.bisection import bisect_rejected
from ingestor.store.write.registration import InstanceInfo

POLICY = BatchPolicy(max_rows=5_000, max_wait_seconds=0)
_NOTHING = WriteResult(new=0, revised=0, duplicate=0, dead_rows=0, dead_frames=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SalvageResult:
    """What became of the entries that the database did not have when the spool was set aside."""

    folder: str
    origin: SpoolOrigin | None  # None: the database does not know this spool
    readable: Sequence[SeqRange]
    unreadable: Sequence[SeqRange]  # the holes between them, and after them if the header can be read
    end_known: bool  # whether it can
    instance_id: int | None = None  # of the salvage; None if there is nothing to write
    written_before: int = 0  # entries, by an earlier run of the command
    written: int = 0
    rows: WriteResult = _NOTHING  # of the entries written now


def find_set_aside(spool_folder: Path) -> list[Path]:
    """Return the folders of the spools that were set aside, the newest first."""
    return sorted(spool_folder.glob(f"{QUARANTINE_PREFIX}*"), reverse=True)


@contextmanager
def open_salvage(config: Config, folder: Path) -> Iterator[Salvage]:
    """Read what is left of a spool, and open the database, which is locked if it is SQLite and upgraded.

    Raises SpoolFailed, AlreadyLocked, DatabaseUnavailable.
    """
    url = config.database.url.get_secret_value()
    spool = _open_spool(folder)
    with lock_database(url), open_database(url, read_only=False) as engine:
        with translate_errors():
            (migrate.upgrade if config.database.migrate == "auto" else migrate.verify_revision)(engine)
        yield Salvage(config, engine, folder, spool)


def _open_spool(folder: Path) -> SalvagedSpool:
    try:
        spool = SalvagedSpool(folder)
    except OSError as error:
        raise SpoolFailed(
            f"{error.filename}: cannot be read ({error.strerror}); run this as the daemon's user"
        ) from None
    if not spool.recognized:
        raise SpoolFailed(f"{folder}: nothing in it is recognized as part of a spool; name another folder")
    return spool


class Salvage:
    """What remains to be written of one spool."""

    def __init__(self, config: Config, engine: Engine, folder: Path, spool: SalvagedSpool) -> None:
        self._retention = config.database.retention
        self._config_sha256 = config.sha256
        self._engine, self._folder, self._spool = engine, folder, spool
        self._decoder = Decoder(catalog.metrics_of, catalog.feed_name)
        with repeatable_read(engine) as connection:
            self._origin = find_origin(connection, spool.spool_id, spool.run_ids)
            spool_id = spool.spool_id or (self._origin.spool_id if self._origin else folder.resolve().name)
            self._spool_id = f"salvage of {spool_id}"[:64]
            recorded = find_salvage(connection, self._spool_id)
        self._after_seq = recorded["after_seq"] if recorded else self._origin.position if self._origin else 0
        self._ranges = [SeqRange(*pair) for pair in recorded["readable"]] if recorded else self._readable()
        if unreadable := [pair for pair in self._ranges if not _includes(self._readable(), pair)]:
            names = ", ".join(f"{first} to {last}" for first, last in unreadable)
            raise SpoolFailed(f"{folder}: an earlier salvage could read the entries {names}; restore this folder")

    def _readable(self) -> list[SeqRange]:
        return self._spool.readable_after(self._after_seq)

    def count(self) -> int:
        """Return how many entries can be read, whether or not they were written before."""
        return sum(last_seq - first_seq + 1 for first_seq, last_seq in self._ranges)

    def run(self, advance: Callable[[int], None]) -> SalvageResult:
        """Write what an earlier run has not, and report the number of entries done. May be interrupted and repeated."""
        result = SalvageResult(
            folder=str(self._folder),
            origin=self._origin,
            readable=self._ranges,
            unreadable=list(self._holes()),
            end_known=self._spool.next_seq > 0,
        )
        if not self._ranges:
            return result
        writer = BatchWriter(self._engine, self._retention.samples)
        instance = InstanceInfo(
            spool_id=self._spool_id,
            name="salvage",
            version=__version__,
            config_sha256=self._config_sha256,
            started_us=wall_us(),
        )
        position = writer.register(instance).position
        result = replace(result, instance_id=writer.instance_id, written_before=max(position - 1, 0))
        try:
            for entries in self._batches(position):
                rows = _add(result.rows, self._write(writer, entries))
                written = result.written + sum(seq > 1 for seq, _ in entries)
                result = replace(result, rows=rows, written=written)
                advance(result.written_before + result.written)
        except PositionConflict:
            raise AlreadyLocked(
                "another process salvages this spool, or the database was replaced; repeat the command later"
            ) from None
        return result

    def _holes(self) -> Iterator[SeqRange]:
        after_seq = self._after_seq
        for first_seq, last_seq in [*self._ranges, SeqRange(self._spool.next_seq, 0)]:
            if first_seq > after_seq + 1:
                yield SeqRange(after_seq + 1, first_seq - 1)
            after_seq = max(last_seq, after_seq)

    def _entries(self) -> Iterator[Entry]:
        """Yield the entries under their new numbers: first the fact that records this, then what the spool has."""
        detail = {"folder": str(self._folder), "after_seq": self._after_seq, "readable": self._ranges}
        items = (item for seq, item in self._spool.read() if _includes(self._ranges, SeqRange(seq, seq)))
        yield from enumerate(chain([Fact(SALVAGED, wall_us(), detail)], map(_without_state, items)), 1)

    def _batches(self, position: int) -> Iterator[list[Entry]]:
        batch: list[Entry] = []
        builder = self._build([], position + 1)
        for entry in self._entries():
            if entry[0] <= position:
                continue
            builder.add(entry)
            batch.append(entry)
            if POLICY.full(rows=builder.units, size_bytes=builder.size_bytes):
                yield batch
                batch, builder = [], self._build([], entry[0] + 1)
        if batch:
            yield batch

    def _build(self, entries: Sequence[Entry], first_seq: int) -> BatchBuilder:
        builder = BatchBuilder(first_seq, self._decoder, keep_payloads=self._retention.payloads != 0.0)
        for entry in entries:
            builder.add(entry)
        return builder

    def _write(self, writer: BatchWriter, entries: Sequence[Entry]) -> WriteResult:
        results: list[WriteResult] = []

        def commit(batch: Batch) -> None:
            results.append(writer.write(batch))

        def reject(entry: Entry, rejection: BatchRejected) -> None:
            commit(rejected_batch(entry, str(rejection)))

        bisect_rejected(entries, lambda part: commit(self._build(part, part[0][0]).batch), reject)
        total = _NOTHING
        for result in results:
            total = _add(total, result)
        return total


def _without_state(item: Frame | Fact) -> Frame | Fact:
    return Fact(item.kind, item.at_us, item.detail) if isinstance(item, Fact) else item


def _includes(ranges: Sequence[SeqRange], part: SeqRange) -> bool:
    return any(first <= part.first_seq and part.last_seq <= last for first, last in ranges)


def _add(first: WriteResult, second: WriteResult) -> WriteResult:
    names = ("new", "revised", "duplicate", "dead_rows", "dead_frames", "expired")
    counts: dict[str, Any] = {name: getattr(first, name) + getattr(second, name) for name in names}
    return WriteResult(**counts)
