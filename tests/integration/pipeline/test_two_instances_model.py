"""Two daemons on one database against a plain model of values, with restarts and commits of unknown outcome.

The model applies entries one by one, in the order of values that the design defines. The writers apply them in batches,
through real spools, and leave out what their cache says is current.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from sqlalchemy import Engine, text

from ingestor.core.entries import Frame, Source
from ingestor.core.times import to_us
from ingestor.errors import DatabaseUnavailable, PositionConflict
from ingestor.pipeline.writer import Writer
from ingestor.spool import ballast
from ingestor.spool.spool import Spool
from ingestor.store import schema
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import audit
from ingestor.store.write import copy_policy
from ingestor.store.write.batch import Batch
from tests.support.entries import T0, fact, frame, row
from tests.support.flaky_commit import CachedValues, CacheRecorder, FlakyCommits, latest_values
from tests.support.hypothesis_steps import MODEL_TIMEOUT_METHOD, StepCounter, fast_folder, run_for
from tests.support.postgres_server import fresh_database
from tests.support.writers import make_writer, raise_failure

Key = tuple[str, int]  # ticker, ts in µs
MINUTE = 60_000_000


class ModelValue(NamedTuple):
    value: float
    instance: int
    seq: int
    received_us: int
    source: str
    is_retry: bool = False

    def later_than(self, other: ModelValue) -> bool:
        if self.instance == other.instance and self.source == other.source == "stream" and not self.is_retry:
            return self.seq >= other.seq
        return (self.received_us, self.instance, self.seq) >= (other.received_us, other.instance, other.seq)

    @property
    def stored(self) -> tuple[float, int, int]:
        return self.value, self.instance, self.seq


class Model:
    """What the tables must hold: per key the current value, and every other in order of arrival."""

    def __init__(self) -> None:
        self.current: dict[Key, ModelValue] = {}
        self.others: dict[Key, list[ModelValue]] = {}
        self.outcomes: Counter[str] = Counter()

    def apply(self, key: Key, value: ModelValue) -> None:
        current = self.current.get(key)
        if current is None:
            self.current[key], outcome = value, "new"
        elif value.value == current.value:
            outcome = "duplicate"
        elif value.later_than(current):
            self.others.setdefault(key, []).append(current)
            self.current[key], outcome = value, "revised"
        elif any(value.value == other.value for other in self.others.get(key, ())):
            outcome = "duplicate"
        else:
            self.others.setdefault(key, []).append(value)
            outcome = "revised"
        self.outcomes[outcome] += 1


class ModelFrame(NamedTuple):
    """A frame as the model has it. A row is (key, value); None is a row without ts."""

    rows: list[tuple[Key, float] | None]
    received_us: int
    source: Source
    is_retry: bool
    connection: str

    @property
    def is_said(self) -> bool:
        """Whether a connection said it, so that the writer may leave out what it said before."""
        return self.source == "stream" and not self.is_retry

    @property
    def frame(self) -> Frame:
        rows = [_json(row) if row else {"ticker": "A", "average_sentiment": 1} for row in self.rows]
        no_such_letter = 1_000_000  # nothing is marked as retried
        retry_of = no_such_letter if self.is_retry else None
        return frame(
            rows,
            received_us=self.received_us,
            source=self.source,
            retry_of=retry_of,
            connection=self.connection,
        )


def _json(model_row: tuple[Key, float]) -> dict[str, Any]:
    (ticker, ts_us), value = model_row
    return row(ticker, (ts_us - T0) // MINUTE, value)


class Run:
    """One run of a daemon, with the spool as it has found it. One that was killed acknowledges nothing any more."""

    def __init__(self, spool: Spool, engine: Engine, number: int) -> None:
        self._spool = spool
        self.run_id = f"run {number}"
        self.opened_head = spool.head
        self.killed = False
        self._recorder = CacheRecorder()
        self.writer: Writer = make_writer(
            self,  # type: ignore[arg-type]
            engine,
            max_rows=6,
            cache=self._recorder.cache,
            new_builder=self._recorder.new_builder,
            sleep=lambda _seconds: None,
        )
        self.writer.register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)

    def knows_run(self, run_id: str) -> bool:
        return run_id.startswith("run ")

    def ack(self, seq: int) -> None:
        if not self.killed:
            self._spool.ack(seq)

    def cached_before(self, first_seq: int) -> CachedValues | None:
        """What the cache held when the batch with this first seq was begun. None: no batch begins there."""
        return self._recorder.contents.get(first_seq)

    @property
    def cached(self) -> CachedValues:
        """The cached values that are committed: without those of a batch that was built ahead."""
        ahead = self.writer.read_ahead.next_batch
        return self._recorder.contents[ahead.batch.first_seq] if ahead else latest_values(self._recorder.cache)


class Daemon:
    """A spool, and its runs."""

    def __init__(self, url: str, spool: Spool, name: str) -> None:
        self._engine = make_engine(url)
        self.name = name
        self.commits = FlakyCommits(self._engine)
        self.spool = spool
        self.received: dict[int, ModelFrame] = {}  # by seq
        self.written = 0  # the model's position
        self.connections = 1
        self._runs = 0
        self.run = self._start_run()

    def _start_run(self) -> Run:
        while True:
            self._runs += 1
            try:
                return Run(self.spool, self._engine, self._runs)
            except DatabaseUnavailable:
                pass  # a commit was to fail

    def restart(self) -> None:
        """Begin another run. Nothing that the previous one still sends changes anything then."""
        previous, self.run = self.run, self._start_run()
        previous.killed = True
        database = previous.writer._database
        if database._registered_over is not None:  # and the same connection, as if there were one a run
            position = database._position
            with pytest.raises(PositionConflict):
                database.write(Batch(first_seq=position + 1, last_seq=position + 1, frames=1))

    @cached_property
    def instance_id(self) -> int:
        with self._engine.connect() as connection:
            query = text("SELECT instance_id FROM instances WHERE spool_id = :spool_id")
            found: int = connection.execute(query, {"spool_id": self.spool.spool_id}).scalar_one()
        return found

    async def receive(self, frames: Sequence[ModelFrame]) -> None:
        for given in frames:
            model_frame = given._replace(connection=f"{self.connections}{given.connection}")
            self.received[self.spool.append(model_frame.frame)] = model_frame
        await self.spool.durable(self.spool.head)

    async def close(self) -> None:
        await self.spool.close()
        self._engine.dispose()


# The same few values at a few moments: repeated, restated, late.
_keys = st.sampled_from([("A", T0), ("A", T0 + MINUTE), ("B", T0)])
_rows = st.tuples(_keys, st.sampled_from([0.0, 1.0, 2.0]))
_sources: st.SearchStrategy[Source] = st.sampled_from(["stream", "stream", "stream", "snapshot", "backfill"])
_frames = st.builds(
    ModelFrame,
    st.lists(_rows, min_size=1, max_size=4) | st.lists(st.none() | _rows, max_size=2),
    st.integers(T0, T0 + 12),
    _sources,
    st.sampled_from([False, False, False, True]),
    st.sampled_from(["", "", "'"]),  # a second connection, beside the first or after it
)
_few = st.lists(_frames, min_size=1, max_size=4)


class TwoDaemons(StepCounter):
    """``fresh_url`` gives a database with the schema and nothing else in it; a file goes into the folder."""

    fresh_url: Callable[[Path], str]

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = fast_folder()
        url = type(self).fresh_url(self._folder)
        self._engine = make_engine(url)
        self._daemons = [Daemon(url, self._open_spool(self._folder / name), name) for name in ("one", "two")]
        self._model = Model()

    def teardown(self) -> None:
        try:
            assert audit(self._engine) == []
        finally:
            for daemon in self._daemons:
                self._await(daemon.close())
            self._engine.dispose()
            self._loop.close()
            shutil.rmtree(self._folder)

    def _await(self, work: Any) -> None:
        self._loop.run_until_complete(asyncio.wait_for(work, 20))

    def _open_spool(self, folder: Path) -> Spool:
        async def start() -> None:
            spool.start(raise_failure)

        spool = Spool(folder, max_bytes=1 << 30, sync_every_seconds=0)
        self._await(start())
        return spool

    which = st.sampled_from([0, 1])

    @rule(which=which, frames=_few)
    def fall_behind(self, which: int, frames: list[ModelFrame]) -> None:
        self._await(self._daemons[which].receive(frames))

    @rule(which=which, frames=_few)
    def keep_up(self, which: int, frames: list[ModelFrame]) -> None:
        self._await(self._daemons[which].receive(frames))
        self.write(which)

    @rule(first=_few, second=_few)
    def receive_the_same(self, first: list[ModelFrame], second: list[ModelFrame]) -> None:
        for which in (0, 1):
            self.keep_up(which, first)
        for which in (0, 1):
            self.keep_up(which, second)

    @rule(which=which, frames=_few)
    def reconnect(self, which: int, frames: list[ModelFrame]) -> None:
        self._daemons[which].connections += 1
        self.keep_up(which, frames)

    @rule(which=which)
    def write(self, which: int) -> None:
        self._write(self._daemons[which], self._daemons[which].run)

    @rule(which=which, state=st.sampled_from(["live", "disconnected"]), at=st.integers(0, 12))
    def change_state(self, which: int, state: Any, at: int) -> None:
        spool = self._daemons[which].spool
        spool.append(fact(state, at_us=T0 + at, state=state, tickers=["A"]))
        spool.heartbeat(T0 + at)
        self._await(spool.durable(spool.head))

    @rule(which=which, number=st.integers(1, 4), done=st.booleans())
    def let_a_commit_fail(self, which: int, number: int, done: bool) -> None:
        self._daemons[which].commits.fail(number, done=done)

    @rule(which=which, written=st.sampled_from(["nothing", "by the new run", "late, by the killed run"]))
    def restart(self, which: int, written: str) -> None:
        """The killed run may have a commit in progress, for which the new run waits when it registers."""
        daemon = self._daemons[which]
        if written == "late, by the killed run":
            daemon.run.killed = True
            self._write(daemon, daemon.run)
        daemon.restart()
        if written == "by the new run":
            self._write(daemon, daemon.run)

    def _write(self, daemon: Daemon, run: Run) -> None:
        run.writer.step()
        instance = daemon.instance_id
        committed = self._scalar(f"SELECT position FROM instances WHERE instance_id = {instance}")
        assert run.writer.status.position == committed >= daemon.written
        cached: CachedValues = {}
        for seq in range(daemon.written + 1, committed + 1):
            before = run.cached_before(seq)
            cached = cached if before is None else dict(before)
            if seq in daemon.received:
                self._apply(instance, seq, daemon.received[seq], cached)
        daemon.written = committed

    def _apply(self, instance: int, seq: int, model_frame: ModelFrame, cached: CachedValues) -> None:
        """Apply a frame to the model, but for the values that the writer leaves out: it must be right in that.

        It may leave out what the same connection said before, unless this instance received another value since.
        """
        rows, received_us, source, is_retry, connection = model_frame
        for model_row in rows:
            if model_row is None:
                self._model.outcomes["dead"] += 1
                continue
            key, value = model_row
            is_repeated = model_frame.is_said and cached.get((connection, key)) == value
            for name in [name for name in cached if name[1] == key and cached[name] != value]:
                del cached[name]
            if is_repeated:
                current = self._model.current[key]
                assert current.value == value or current.instance != instance
                self._model.outcomes["duplicate"] += 1
            else:
                self._model.apply(key, ModelValue(value, instance, seq, received_us, source, is_retry))

    def _scalar(self, query: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(query)).scalar_one()

    # -- invariants

    @invariant()
    def tables_equal_the_model(self) -> None:
        assert self._table(schema.samples) == {
            key: [(0 if revisions is None else len(revisions), value.stored)]
            for key, value in self._model.current.items()
            for revisions in [self._model.others.get(key)]
        }
        assert self._table(schema.sample_revisions) == {
            key: [(number, value.stored) for number, value in enumerate(others)]
            for key, others in self._model.others.items()
        }

    @invariant()
    def every_row_is_accounted_for(self) -> None:
        outcomes = ("new", "revised", "duplicate", "dead")
        sums = ", ".join(f"coalesce(sum({outcome}_rows), 0)" for outcome in outcomes)
        with self._engine.connect() as connection:
            found = connection.execute(text(f"SELECT {sums} FROM batches")).one()
        assert dict(zip(outcomes, found, strict=True)) == {name: self._model.outcomes[name] for name in outcomes}

    @invariant()
    def cached_values_are_current_unless_the_other_restated_them(self) -> None:
        for daemon in self._daemons:
            if daemon.run.writer.status.position != daemon.written:
                continue  # another run of it has committed since: this one will notice, and clear its cache
            for (_, key), value in daemon.run.cached.items():
                current = self._model.current[key]
                assert current.value == value or current.instance != daemon.instance_id

    def _table(self, table: Any) -> dict[Key, list[tuple[int, tuple[float, int, int]]]]:
        found: dict[Key, list[tuple[int, tuple[float, int, int]]]] = {}
        query = (
            f"SELECT ticker, ts, revision, value, instance_id, seq FROM {table.name} JOIN series USING (series_id)"
            " ORDER BY ticker, ts, revision"
        )
        with self._engine.connect() as connection:
            for ticker, ts, revision, *value in connection.execute(text(query).columns(ts=schema.UtcDateTime())):
                found.setdefault((ticker, to_us(ts)), []).append((revision, tuple(value)))
        return found


class OnSqlite(TwoDaemons):
    pass


class OnPostgres(TwoDaemons):
    pass


@pytest.fixture(autouse=True)
def small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 4096)


@pytest.mark.timeout(method=MODEL_TIMEOUT_METHOD)
def test_two_instances_agree_with_the_model_on_sqlite(sqlite_template: Path) -> None:
    def fresh_url(folder: Path) -> str:
        return f"sqlite:///{shutil.copy(sqlite_template, folder / 'ingestor.db')}"

    OnSqlite.fresh_url = staticmethod(fresh_url)
    run_for(OnSqlite, 2_000)


@pytest.mark.postgres
@pytest.mark.timeout(method=MODEL_TIMEOUT_METHOD)
def test_two_instances_agree_with_the_model_on_postgres(
    postgres_template_url: str, postgres_server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_policy, "FIRST_WAIT", 0)  # a try to copy before each merge
    with fresh_database(postgres_server_url, postgres_template_url) as plain:
        url = plain.replace("postgresql://", "postgresql+psycopg://")

        def emptied_url(_folder: Path) -> str:
            with psycopg.connect(plain) as connection:
                connection.execute(f"TRUNCATE {', '.join(schema.metadata.tables)} RESTART IDENTITY")
            return url

        OnPostgres.fresh_url = staticmethod(emptied_url)
        run_for(OnPostgres, 500)
