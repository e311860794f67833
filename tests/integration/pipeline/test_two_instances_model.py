"""Two daemons on one database against a plain model of values, with restarts and commits of unknown outcome.

The model takes entries one by one, as the design's "Order of values" has it; the writers take them in batches, through
real spools, and skip what they know to be current.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from msgspec import structs
from sqlalchemy import text

from ingestor.core.entries import Frame, Source
from ingestor.core.times import to_us
from ingestor.errors import SpoolFailed
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.spool import ballast
from ingestor.spool.spool import Spool
from ingestor.store import schema
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import audit
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo
from tests.support.entries import T0, decoder, fact, frame, row
from tests.support.flaky_commit import HastyWriter, Unsteady
from tests.support.hypothesis_steps import Counted, fast_folder, run_for
from tests.support.postgres_server import fresh_database

Key = tuple[str, int]  # ticker, ts in µs
MINUTE = 60_000_000


class Given(NamedTuple):
    """A value as the model has it."""

    value: float
    instance: int
    seq: int
    received_us: int
    source: str
    retried: bool = False

    def later_than(self, other: Given) -> bool:
        if self.instance == other.instance and self.source == other.source == "stream" and not self.retried:
            return self.seq >= other.seq
        return (self.received_us, self.instance, self.seq) >= (other.received_us, other.instance, other.seq)

    @property
    def stored(self) -> tuple[float, int, int]:
        return self.value, self.instance, self.seq


class Books:
    """What the tables must hold: per key the current value, and every other in order of arrival."""

    def __init__(self) -> None:
        self.current: dict[Key, Given] = {}
        self.others: dict[Key, list[Given]] = {}
        self.outcomes: Counter[str] = Counter()

    def take(self, key: Key, given: Given) -> None:
        current = self.current.get(key)
        if current is None:
            self.current[key], outcome = given, "new"
        elif given.value == current.value:
            outcome = "duplicate"
        elif given.later_than(current):
            self.others.setdefault(key, []).append(current)
            self.current[key], outcome = given, "revised"
        elif any(given.value == other.value for other in self.others.get(key, ())):
            outcome = "duplicate"
        else:
            self.others.setdefault(key, []).append(given)
            outcome = "revised"
        self.outcomes[outcome] += 1


class Daemon:
    """A spool, and the writers of its runs. A run that was killed may have one commit still on its way."""

    def __init__(self, url: str, folder: Path, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._name = name
        self._engine = make_engine(url)
        self.commits = Unsteady(self._engine)
        self.spool = Spool(folder, max_bytes=1 << 30, sync_every_seconds=0)
        self.told: dict[int, Telling] = {}
        self.written = 0  # the model's position
        self.writer = self._begun()
        self.before = self.writer  # of the run before this one

    def _begun(self) -> HastyWriter:
        instance = InstanceInfo(
            spool_id=self.spool.spool_id, name=self._name, version="", config_sha256="", started_us=T0
        )
        policy = BatchPolicy(max_rows=6, max_wait_seconds=0)
        writer = HastyWriter(self.spool, BatchWriter(self._engine), decoder(), policy, instance, prepare=lambda: None)
        writer.drain()
        assert writer._retry(writer._begin)
        return writer

    def restart(self) -> None:
        self.before, self.writer = self.writer, self._begun()
        self.before._spool = Left(self.spool)

    async def receive(self, tellings: Sequence[Telling]) -> None:
        for telling in tellings:
            self.told[self.spool.append(telling.frame)] = telling
        await self.spool.durable(self.spool.head)

    async def close(self) -> None:
        await self.spool.close()
        self._engine.dispose()


class Left:
    """The spool as a killed run has it: its commit may still come through, but it takes nothing away any more."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)

    def ack(self, seq: int) -> None:
        pass


class Telling(NamedTuple):
    """A frame as the model has it. A row is (key, value); None is one that lacks its moment."""

    rows: list[tuple[Key, float] | None]
    received_us: int
    source: Source
    retried: bool

    @property
    def frame(self) -> Frame:
        rows = [_json(told) if told else {"ticker": "A", "average_sentiment": 1} for told in self.rows]
        made = frame(rows, received_us=self.received_us, source=self.source)
        return structs.replace(made, retry_of=1_000_000 if self.retried else None)  # no such letter: nothing to mark


def _json(told: tuple[Key, float]) -> dict[str, Any]:
    (ticker, ts_us), value = told
    return row(ticker, (ts_us - T0) // MINUTE, value)


# The same few values at a few moments: repeated, restated, late.
_keys = st.sampled_from([("A", T0), ("A", T0 + MINUTE), ("B", T0)])
_rows = st.tuples(_keys, st.sampled_from([0.0, 1.0, 2.0]))
_sources: st.SearchStrategy[Source] = st.sampled_from(["stream", "stream", "stream", "snapshot", "backfill"])
_tellings = st.builds(
    Telling,
    st.lists(_rows, min_size=1, max_size=4) | st.lists(st.none() | _rows, max_size=2),
    st.integers(T0, T0 + 12),
    _sources,
    st.sampled_from([False, False, False, True]),
)
_few = st.lists(_tellings, min_size=1, max_size=4)


class TwoDaemons(Counted):
    """``fresh_url`` gives a database with the schema and nothing else in it; for a file there is a folder."""

    fresh_url: Callable[[Path], str]

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = fast_folder()
        url = type(self).fresh_url(self._folder)
        self._engine = make_engine(url)
        self._daemons = [Daemon(url, self._folder / name, name, self._loop) for name in ("one", "two")]
        for daemon in self._daemons:
            self._await(self._start(daemon.spool))
        self._books = Books()

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

    async def _start(self, spool: Spool) -> None:
        spool.start(_unexpected)

    which = st.sampled_from([0, 1])

    @rule(which=which, tellings=_few)
    def fall_behind(self, which: int, tellings: list[Telling]) -> None:
        self._await(self._daemons[which].receive(tellings))

    @rule(which=which, tellings=_few)
    def keep_up(self, which: int, tellings: list[Telling]) -> None:
        self._await(self._daemons[which].receive(tellings))
        self.write(which)

    @rule(told=_few, again=_few)
    def hear_the_same(self, told: list[Telling], again: list[Telling]) -> None:
        for which in (0, 1):
            self.keep_up(which, told)
        for which in (0, 1):
            self.keep_up(which, again)

    @rule(which=which)
    def write(self, which: int) -> None:
        self._write(self._daemons[which], self._daemons[which].writer)

    @rule(which=which, state=st.sampled_from(["live", "disconnected"]), at=st.integers(0, 12))
    def something_happens(self, which: int, state: Any, at: int) -> None:
        spool = self._daemons[which].spool
        spool.append(fact(state, at_us=T0 + at, state=state, tickers=["A"]))
        spool.heartbeat(T0 + at)
        self._await(spool.durable(spool.head))

    @rule(which=which, number=st.integers(1, 4), done=st.booleans())
    def a_commit_will_fail(self, which: int, number: int, done: bool) -> None:
        self._daemons[which].commits.fail(number, done=done)

    @rule(which=which, written=st.sampled_from(["nothing", "by the new run", "late, by the killed one"]))
    def restart(self, which: int, written: str) -> None:
        """The old run may have one commit on its way still, which comes through before the new run's first or not."""
        daemon = self._daemons[which]
        daemon.restart()
        if written != "nothing":
            self._write(daemon, daemon.writer if written == "by the new run" else daemon.before)

    def _write(self, daemon: Daemon, writer: HastyWriter) -> None:
        writer.step()
        instance = writer._database.instance_id
        committed = self._one(f"SELECT position FROM instances WHERE instance_id = {instance}")
        assert writer.status.position == committed >= daemon.written
        known: dict[Key, float] = {}
        for seq in range(daemon.written + 1, committed + 1):
            known = dict(writer.believed.get(seq, known))
            if seq in daemon.told:
                self._account(instance, seq, daemon.told[seq], known)
        daemon.written = committed

    def _account(self, instance: int, seq: int, telling: Telling, known: dict[Key, float]) -> None:
        _, received_us, source, retried = telling
        for told in telling.rows:
            if told is None:
                self._books.outcomes["dead"] += 1
                continue
            key, value = told
            if known.get(key, value) != value:
                del known[key]
            if key in known and not retried:
                current = self._books.current[key]
                assert current.value == value or current.instance != instance
                self._books.outcomes["duplicate"] += 1
            else:
                self._books.take(key, Given(value, instance, seq, received_us, source, retried))

    def _one(self, query: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(query)).scalar_one()

    # -- what always holds

    @invariant()
    def every_value_is_where_it_belongs(self) -> None:
        assert self._table(schema.samples) == {
            key: [(0 if revisions is None else len(revisions), given.stored)]
            for key, given in self._books.current.items()
            for revisions in [self._books.others.get(key)]
        }
        assert self._table(schema.sample_revisions) == {
            key: [(number, given.stored) for number, given in enumerate(others)]
            for key, others in self._books.others.items()
        }

    @invariant()
    def every_row_is_accounted_for(self) -> None:
        outcomes = ("new", "revised", "duplicate", "dead")
        sums = ", ".join(f"coalesce(sum({outcome}_rows), 0)" for outcome in outcomes)
        with self._engine.connect() as connection:
            found = connection.execute(text(f"SELECT {sums} FROM batches")).one()
        assert dict(zip(outcomes, found, strict=True)) == {name: self._books.outcomes[name] for name in outcomes}

    @invariant()
    def what_a_writer_knows_is_current_unless_the_other_restated_it(self) -> None:
        for daemon in self._daemons:
            if daemon.writer.status.position != daemon.written:
                continue  # another run of it has committed since: it will notice, and forget
            for key, value in daemon.writer.knows.items():
                current = self._books.current[key]
                assert current.value == value or current.instance != daemon.writer._database.instance_id

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


def _unexpected(failure: SpoolFailed) -> None:
    raise failure


class OnSqlite(TwoDaemons):
    pass


class OnPostgres(TwoDaemons):
    pass


@pytest.fixture(autouse=True)
def no_room_for_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 4096)


def test_two_instances_agree_with_the_model_on_sqlite(sqlite_template: Path) -> None:
    def fresh_url(folder: Path) -> str:
        return f"sqlite:///{shutil.copy(sqlite_template, folder / 'ingestor.db')}"

    OnSqlite.fresh_url = staticmethod(fresh_url)
    run_for(OnSqlite, 2_000)


@pytest.mark.postgres
def test_two_instances_agree_with_the_model_on_postgres(postgres_template_url: str, postgres_server_url: str) -> None:
    with fresh_database(postgres_server_url, postgres_template_url) as plain:
        url = plain.replace("postgresql://", "postgresql+psycopg://")

        def emptied_url(_folder: Path) -> str:
            with psycopg.connect(plain) as connection:
                connection.execute(f"TRUNCATE {', '.join(schema.metadata.tables)} RESTART IDENTITY")
            return url

        OnPostgres.fresh_url = staticmethod(emptied_url)
        run_for(OnPostgres, 500)
