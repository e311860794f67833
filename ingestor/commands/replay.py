"""Tells another database what the configured one was told: the same decode, the same order, the same write.

Each entry is told once, in order. What was told before is passed over: a replay may be repeated, and interrupted.
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
from ingestor.store.engine import Connection, Engine, repeatable_read, translate_errors
from ingestor.store.open_database import open_database, with_remedy
from ingestor.store.read import replay_source
from ingestor.store.read.replay_source import EntryRange, ReplayEntry
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo

POLICY = BatchPolicy(max_rows=5_000, max_wait_seconds=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What became of it."""

    entries: int = 0
    rows: int = 0
    new: int = 0
    revised: int = 0
    duplicate: int = 0
    dead: int = 0  # rows and frames: they stay where they are, in the dead letters of the one that was read


@contextmanager
def open_target(source: Engine, url: str) -> Iterator[Engine]:
    """Another database than ``source``, its tables up to date; a SQLite file is nobody else's as long as this lasts.

    Raises PermissionDenied, AlreadyLocked, SchemaTooNew, DatabaseUnavailable.
    """
    with open_database(url, read_only=False) as target:
        if replay_source.is_same_database(source, target):
            raise PermissionDenied(
                "that is the database that is read: name another, which may be empty or not there yet"
            )
        lock = lock_database(url)
        try:
            migrate.upgrade(target)
            yield target
        finally:
            if lock:
                lock.release()


class Replayer:
    """Of some entries of one database into another, whose tables are up to date."""

    def __init__(self, source: Connection, target: Engine, wanted: Sequence[EntryRange]) -> None:
        """``source`` reads repeatably. Raises ValueError if later ones were told before: nothing can be put before."""
        self._source = source
        self._targets: dict[int, BatchWriter] = {}
        self._left: list[EntryRange] = []
        with repeatable_read(target) as connection:
            there = replay_source.instances_by_spool(connection)
        for spool_id, instance_id in replay_source.instances_by_spool(source).items():
            for one in (each for each in wanted if each.instance_id == instance_id):
                self._introduce(target, spool_id, one, _told_from(spool_id, there))

    def _introduce(self, target: Engine, spool_id: str, wanted: EntryRange, told_from: int | None) -> None:
        if told_from and wanted.first_seq < told_from:
            raise ValueError(
                f"instance {wanted.instance_id} was told from entry {told_from} on, and what was before cannot be put"
                f" before it: begin later than entry {wanted.first_seq}, or replay into an empty database"
            )
        # Under a name of its own: where its daemon may write too, that has its own position and ledger.
        first_seq = told_from or wanted.first_seq
        me = InstanceInfo(
            spool_id=f"{_prefix(spool_id)}{first_seq}",
            name="replay",
            version=__version__,
            config_sha256="",
            started_us=wall_us(),
        )
        database = BatchWriter(target)
        position = database.register(me, first_seq)
        self._targets[wanted.instance_id] = database
        if position < wanted.last_seq:
            self._left.append(wanted._replace(first_seq=position + 1))

    def count(self) -> int:
        """How many entries are still to be told."""
        return replay_source.count_entries(self._source, self._left)

    def run(self, advance: Callable[[int], None]) -> ReplayResult:
        """Tell them. ``advance`` hears how many are done. Raises DatabaseUnavailable, AlreadyLocked."""
        decoder = Decoder(catalog.metrics_of, catalog.feed_name)
        done = ReplayResult()
        with closing(self._told()) as told:
            for instance_id, turn in groupby(told, key=attrgetter("instance_id")):
                for assembly in _assembled(decoder, turn):
                    done = _written(self._targets[instance_id], assembly, done)
                    advance(done.entries)
        return done

    def _told(self) -> Generator[ReplayEntry]:
        with with_remedy(str(self._source.engine.url)), translate_errors():
            yield from replay_source.read_entries(self._source, self._left)


def _prefix(spool_id: str) -> str:
    return f"replay of {spool_id} from "


def _told_from(spool_id: str, there: Iterable[str]) -> int | None:
    """The first entry that was told of a spool; None if none was."""
    prefix = _prefix(spool_id)
    return next((int(name.removeprefix(prefix)) for name in there if name.startswith(prefix)), None)


def _assembled(decoder: Decoder, told: Iterable[ReplayEntry]) -> Iterator[BatchBuilder]:
    """What one instance received, under its own seqs: they say which of two values is the later one."""
    assembly: BatchBuilder | None = None
    for one in told:
        # Letters of one frame have one seq: they are told together.
        full = assembly and POLICY.full(rows=assembly.units, size_bytes=assembly.size_bytes)
        if assembly and full and one.seq > assembly.batch.last_seq:
            yield assembly
            assembly = None
        assembly = assembly or BatchBuilder(one.seq, decoder, keep_payloads=False)
        assembly.add((one.seq, rebuild_frame({**one.columns, "dead_letter_id": 0 if one.is_retry else None})))
    if assembly:
        yield assembly


def _written(database: BatchWriter, assembly: BatchBuilder, before: ReplayResult) -> ReplayResult:
    batch = assembly.batch
    try:
        written = database.write_samples(batch)
    except PositionConflict:
        raise AlreadyLocked(
            "somebody else tells that database the same; wait, then go on with the same command"
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
