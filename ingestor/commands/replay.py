"""Replay the payloads and dead letters of one database into another: decoded, ordered and written as the first time.

Each entry is replayed once, in order. Entries that were replayed before are skipped, so a replay can be interrupted and
repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

from ingestor import __version__
from ingestor.core.clock import wall_us
from ingestor.daemon.factory import lock_database
from ingestor.errors import AlreadyLocked, PermissionDenied, PositionConflict
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.dead_letters import rebuild_frame
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from ingestor.store import migrate
from ingestor.store.engine import Connection, Engine, repeatable_read, shown_url, translate_errors
from ingestor.store.open_database import name_database, open_database
from ingestor.store.read import replay_source
from ingestor.store.read.replay_source import EntryRange, ReplayEntry
from ingestor.store.write.batch import Batch
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, SpoolExtent

POLICY = BatchPolicy(max_rows=5_000, max_wait_seconds=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """The counts of a replay."""

    entries: int = 0
    rows: int = 0
    new: int = 0
    revised: int = 0
    duplicate: int = 0
    dead: int = 0  # rows and frames; they remain dead letters of the source, and are not copied


@contextmanager
def open_target(source: Engine, url: str) -> Iterator[Engine]:
    """Open another database than ``source``, lock it if it is SQLite, and upgrade its tables.

    Raises PermissionDenied, AlreadyLocked, SchemaTooNew, DatabaseUnavailable.
    """
    with open_database(url, read_only=False) as target:
        if replay_source.is_same_database(source, target):
            raise PermissionDenied(
                "--into: this is the database to read from; name another one, which may be empty or new"
            )
        with lock_database(url):
            migrate.upgrade(target)
            yield target


class Replayer:
    """Replays entries of one database into another one whose tables are up to date."""

    def __init__(self, source: Connection, target: Engine, ranges: Sequence[EntryRange]) -> None:
        """``source`` reads repeatably. Raises ValueError if later entries were replayed before."""
        self._source = source
        self._targets: dict[int, BatchWriter] = {}
        self._remaining: list[EntryRange] = []
        with repeatable_read(target) as connection:
            replayed = replay_source.instances_by_spool(connection)
        for spool_id, instance_id in replay_source.instances_by_spool(source).items():
            prefix = f"replay of {spool_id} from "
            starts = (int(name.removeprefix(prefix)) for name in replayed if name.startswith(prefix))
            replayed_from = next(starts, None)
            for entries in ranges:
                if entries.instance_id == instance_id:
                    self._add(target, entries, prefix, replayed_from)

    def _add(self, target: Engine, entries: EntryRange, prefix: str, replayed_from: int | None) -> None:
        if replayed_from and entries.first_seq < replayed_from:
            raise ValueError(
                f"instance {entries.instance_id} was replayed from entry {replayed_from} on, and earlier entries cannot"
                f" follow: start after entry {entries.first_seq}, or replay into an empty database"
            )
        # An instance of its own: if the daemon writes to the target too, it has its own position and ledger there.
        first_seq = replayed_from or entries.first_seq
        instance = InstanceInfo(
            spool_id=f"{prefix}{first_seq}", name="replay", version=__version__, config_sha256="", started_us=wall_us()
        )
        writer = self._targets[entries.instance_id] = BatchWriter(target)
        position = writer.register(instance, SpoolExtent(first_seq)).position
        if position < entries.last_seq:
            self._remaining.append(entries._replace(first_seq=position + 1))

    def count(self) -> int:
        """Return how many entries remain."""
        return replay_source.count_entries(self._source, self._remaining)

    def run(self, advance: Callable[[int], None]) -> ReplayResult:
        """Replay the remaining entries, and report the number done. Raises DatabaseUnavailable, AlreadyLocked."""
        decoder = Decoder(catalog.metrics_of, catalog.feed_name)
        result = ReplayResult()
        with closing(self._read_entries()) as entries:
            for instance_id, same_instance in groupby(entries, key=attrgetter("instance_id")):
                for builder in _build_batches(decoder, same_instance):
                    result = _write(self._targets[instance_id], builder.batch, result)
                    advance(result.entries)
        return result

    def _read_entries(self) -> Generator[ReplayEntry]:
        with name_database(shown_url(self._source.engine)), translate_errors():
            yield from replay_source.read_entries(self._source, self._remaining)


def _build_batches(decoder: Decoder, entries: Iterable[ReplayEntry]) -> Iterator[BatchBuilder]:
    """Batch the entries of one instance under their own seqs, which decide which of two values is the later one."""
    builder: BatchBuilder | None = None
    for entry in entries:
        full = builder and POLICY.full(rows=builder.units, size_bytes=builder.size_bytes)
        # Dead letters of one frame share its seq, so they stay in one batch.
        if builder and full and entry.seq > builder.batch.last_seq:
            yield builder
            builder = None
        builder = builder or BatchBuilder(entry.seq, decoder, keep_payloads=False)
        builder.add((entry.seq, rebuild_frame({**entry.columns, "dead_letter_id": 0 if entry.is_retry else None})))
    if builder:
        yield builder


def _write(writer: BatchWriter, batch: Batch, before: ReplayResult) -> ReplayResult:
    try:
        written = writer.write_samples(batch)
    except PositionConflict:
        raise AlreadyLocked(
            "another process replays the same entries, or the database was replaced; repeat the command later"
        ) from None
    return replace(
        before,
        entries=before.entries + batch.frames,
        rows=before.rows + batch.row_count,
        new=before.new + written.new,
        revised=before.revised + written.revised,
        duplicate=before.duplicate + written.duplicate,
        dead=before.dead + written.dead_rows + written.dead_frames,
    )
