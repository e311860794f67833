"""A database that went back in time: what the spool keeps is written again, once, by the instance that wrote it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from pydantic import SecretStr
from sqlalchemy import Engine, text

from ingestor.config.model import Subscription
from ingestor.core.entries import Fact, Frame, LetterOrigin
from ingestor.core.times import to_datetime
from ingestor.errors import SpoolFailed
from ingestor.monitoring.fact_messages import message_of
from ingestor.monitoring.latest_values import LatestValues
from ingestor.monitoring.status import severity
from ingestor.pipeline.dead_letters import requeue_dead_letters
from ingestor.pipeline.registrar import Rewind
from ingestor.provider.rest_api import RestClient
from ingestor.repair import RepairWorker, backfill_requests, repeat_backfill
from ingestor.spool.keep import Keep
from ingestor.spool.spool import Spool
from ingestor.store import schema
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import audit, find_losses
from tests.support.daemon import until
from tests.support.database_copy import contents, database_with_copy
from tests.support.entries import CROWD, T0, decoder, fact, frame, row
from tests.support.writers import make_writer, put, query, raise_failure

from .conftest import KEEP_ALL

SECOND = 1_000_000


class Daemon:
    """Runs of a daemon on one spool: each is a Spool that was opened, and a writer that has registered."""

    def __init__(self, folder: Path, engine: Engine, keep: Keep = KEEP_ALL) -> None:
        self.engine = engine
        self.rewinds: list[Rewind] = []
        self.lost: list[tuple[str, int | None]] = []
        self.begun: list[int | None] = []  # instances that began in the middle: since when they have everything
        self.heard: list[int] = []  # when data was received, as the supervisor learns it
        self.shown: list[float] = []  # values, as the status page gets them
        self._folder, self._keep = folder, keep

    async def start(self, *, register: bool = True) -> None:
        self.spool = Spool(self._folder, max_bytes=1 << 30, sync_every_seconds=0.001, keep=self._keep)
        self.spool.start(raise_failure)
        self.writer = make_writer(
            self.spool,
            self.engine,
            on_rewound=self.rewinds.append,
            on_lost=lambda *loss: self.lost.append(loss),
            on_new_instance=self.begun.append,
            on_decoded=lambda received_us, _: self.heard.extend(received_us.values()),
            on_rows=lambda rows: self.shown.extend(row.value for row in rows),
            repeat_backfill=partial(repeat_backfill, self.engine),
        )
        if register:
            self.writer.register()

    async def restart(self) -> None:
        await self.spool.close()
        await self.start()

    async def receive(self, *entries: Frame | Fact) -> None:
        await put(self.spool, *entries)

    async def beat(self, at_us: int) -> None:
        self.spool.heartbeat(at_us)
        await until(lambda: self.spool.durable_heartbeat and self.spool.durable_heartbeat.at_us == at_us)

    def write(self) -> None:
        """Write everything, then the heartbeat."""
        self.writer.step()
        while not self.writer.drained or self.writer.status.rewound_to:
            self.writer.step()
        self.writer.step()

    async def notice(self) -> None:
        """Publish a heartbeat, as an idle daemon does, and write what is missing then."""
        last = self.spool.durable_heartbeat
        await self.beat((last.at_us if last else T0) + 1)
        self.write()


@pytest.fixture
async def start_daemon(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await start_daemon(engine, name="one", keep=KEEP_ALL)``: a daemon on a spool of its own."""
    async with AsyncExitStack() as stack:

        async def start(engine: Engine, name: str = "one", keep: Keep = KEEP_ALL) -> Daemon:
            daemon = Daemon(tmp_path / name, engine, keep)
            await daemon.start()
            stack.push_async_callback(lambda: daemon.spool.close())
            return daemon

        yield start


@pytest.fixture
def sqlite(tmp_path: Path, sqlite_template: Path) -> Any:
    """An engine on a new SQLite database."""
    engine = make_engine(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'ingestor.db')}")
    yield engine
    engine.dispose()


class Backup:
    """A copy of a SQLite database, which can be put back any number of times."""

    def __init__(self, engine: Engine) -> None:
        self._path = Path(str(engine.url.database))
        self._copy = self._path.with_name(f"backup{len(list(self._path.parent.glob('backup*')))}")
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute(f"VACUUM INTO '{self._copy}'")

    def restore(self) -> None:
        new = Path(shutil.copy(self._copy, self._path.with_name("new.db")))
        new.replace(self._path)


def said(value: float, *, at: int = 0, ticker: str = "A", minute: int | None = None) -> Frame:
    """A frame with one value, received ``at`` seconds after T0."""
    minute = at if minute is None else minute
    return frame([row(ticker, minute, value)], received_us=T0 + at * SECOND)


def state(kind: Any, at: int, **options: Any) -> Fact:
    return fact(kind, at_us=T0 + at * SECOND, state=kind, **options)


async def begin(daemon: Daemon) -> None:
    """Become live, receive something, and write it."""
    await daemon.receive(state("live", 0, tickers=["A"]), said(0.5, at=1))
    await daemon.beat(T0 + 2 * SECOND)
    daemon.write()


def assert_nothing_is_lost(daemon: Daemon, before: list[Any]) -> None:
    assert contents(daemon.engine) == before
    assert daemon.lost == []
    assert audit(daemon.engine) == []
    assert find_losses(daemon.engine) == []


@pytest.mark.parametrize("noticed", ["with the next entry", "with the heartbeat", "at the next start"])
async def test_entries_after_a_copy_are_written_again_by_the_same_instance(
    start_daemon: Callable[..., Any], engine: Engine, tmp_path: Path, server_url: str, noticed: str
) -> None:
    daemon = await start_daemon(engine)
    await begin(daemon)
    with database_with_copy(engine, tmp_path, server_url) as (_, switch):
        await daemon.receive(said(1, at=3), said(2, at=3, ticker="B"), frame("{bad", received_us=T0 + 4 * SECOND))
        await daemon.receive(said(3, at=3), state("disconnected", 5, tickers=["A"]), state("live", 6, tickers=["A"]))
        await daemon.beat(T0 + 7 * SECOND)
        daemon.write()
        before = contents(engine)
        switch()
        if server_url:
            engine.dispose()
        assert contents(engine) != before
        if noticed == "with the next entry":
            await daemon.receive(fact("paused"))
        elif noticed == "at the next start":
            await daemon.restart()
        else:
            await daemon.beat(T0 + 7 * SECOND + 1)
        daemon.write()
        if noticed == "with the next entry":
            with engine.begin() as connection:  # so that the rest can be compared
                assert connection.execute(text("DELETE FROM events WHERE kind = 'paused'")).rowcount == 1
                connection.execute(
                    text("UPDATE batches SET facts = facts - 1, last_seq = last_seq - 1 WHERE last_seq = 9")
                )
                connection.execute(text("UPDATE instances SET position = position - 1"))
        assert_nothing_is_lost(daemon, before)
        ((heartbeat,),) = query(engine, "SELECT heartbeat_at FROM instances")
        assert "00:00:07" in str(heartbeat)
    assert (daemon.spool.server is None) == (not server_url)
    rewinds = [(rewind.position, rewind.entries, rewind.since_us) for rewind in daemon.rewinds]
    assert rewinds == [(2, 6, T0 + 3 * SECOND)]


async def test_rewind_is_reported_once_with_how_much_and_why(start_daemon: Callable[..., Any], sqlite: Engine) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(said(1, at=3))
    daemon.write()
    backup.restore()
    await daemon.restart()
    assert daemon.writer.status.rewound_to == 3
    await daemon.restart()  # before anything is written again
    assert daemon.writer.status.rewound_to == 3
    daemon.write()
    assert daemon.writer.status.rewound_to == 0
    (rewind,) = daemon.rewinds
    reported = rewind.to_fact(T0)
    assert reported.detail == {
        "reason": "the database is back at entry 2: it was restored, or a standby has taken over",
        "entries": 1,
        "position": 2,
        "received_since": "2026-01-01 00:00:03 UTC",
    }
    assert (reported.kind, severity(reported)) == ("rewound", "warning")
    assert "writing again" in message_of(reported)


async def test_database_that_goes_back_again_while_it_catches_up_ends_up_complete(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    oldest = Backup(sqlite)
    for number in range(3, 40):
        await daemon.receive(said(number, at=number))
    daemon.write()
    newer = Backup(sqlite)
    await daemon.receive(said(40, at=40))
    daemon.write()
    before = contents(sqlite)
    limit_batches(daemon, 10)
    oldest.restore()
    await daemon.beat(T0 + 50 * SECOND)
    daemon.writer.step()
    daemon.writer.step()
    assert 2 < daemon.writer.status.position < 40
    for backup in (newer, oldest, newer):  # forward, and back
        backup.restore()
        daemon.writer.step()
        await daemon.restart()
    daemon.write()
    assert_nothing_is_lost(daemon, before)


def limit_batches(daemon: Daemon, max_rows: int) -> None:
    ahead = daemon.writer.read_ahead
    ahead._policy = replace(ahead._policy, max_rows=max_rows)


async def test_rewind_while_draining_is_written_before_the_end(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(said(1, at=3), state("stopped", 4))
    await daemon.beat(T0 + 4 * SECOND)
    daemon.write()
    before = contents(sqlite)
    backup.restore()
    await daemon.receive(fact("started"))
    daemon.writer.run()  # which drains
    assert daemon.writer.status.position == daemon.spool.head == 5
    assert contents(sqlite)[:2] == before[:2]
    assert audit(sqlite) == []


@pytest.mark.parametrize("point", ["before the spool is set back", "after that"])
async def test_rewind_that_is_killed_is_repeated(start_daemon: Callable[..., Any], sqlite: Engine, point: str) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(said(1, at=3), said(2, at=4))
    daemon.write()
    before = contents(sqlite)
    backup.restore()
    rewind = daemon.spool.rewind

    def die(position: int) -> bool:
        if point == "after that":
            assert rewind(position)
        raise SpoolFailed("killed")

    daemon.spool.rewind = die  # type: ignore[method-assign]
    with suppress(SpoolFailed):
        daemon.writer.register()
    await daemon.restart()
    daemon.write()
    assert_nothing_is_lost(daemon, before)


async def test_what_the_spool_has_just_dropped_is_lost_and_the_rest_written(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    """A full disk takes kept entries between the claim and the rewind."""
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    for number in range(3, 7):
        await daemon.receive(said(number, at=number))
    daemon.write()
    backup.restore()
    rewind = daemon.spool.rewind

    def drop_first(position: int) -> bool:
        daemon.spool.rewind = rewind  # type: ignore[method-assign]
        daemon.spool._request(lambda: daemon.spool._file.update(forgotten=4))
        return rewind(position)

    daemon.spool.rewind = drop_first  # type: ignore[method-assign]
    daemon.writer.register()
    daemon.write()
    assert [reason for reason, _ in daemon.lost] == [
        "the database's position 2 does not fit the spool: one of them is an older copy"
    ]
    assert query(sqlite, "SELECT value FROM observations ORDER BY ts") == [(0.5,), (5.0,), (6.0,)]
    assert audit(sqlite) == []


# -- a database that does not know the spool, a lag beyond what is kept, a copied spool


async def test_database_that_does_not_know_the_spool_gets_all_that_is_kept(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    empty = Backup(sqlite)
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    before = contents(sqlite)
    empty.restore()
    await daemon.notice()
    assert_nothing_is_lost(daemon, before)
    assert [(rewind.entries, rewind.reason) for rewind in daemon.rewinds] == [
        (2, "the database has nothing of this instance")
    ]
    assert daemon.begun == []


async def test_lag_beyond_what_is_kept_is_lost_and_the_kept_part_is_written(
    start_daemon: Callable[..., Any], engine: Engine, tmp_path: Path, server_url: str
) -> None:
    daemon = await start_daemon(engine)
    await begin(daemon)
    with database_with_copy(engine, tmp_path, server_url) as (_, switch):
        for number in range(3, 10):
            await daemon.receive(said(number, at=number))
        await daemon.beat(T0 + 10 * SECOND)
        daemon.write()
        daemon.spool._request(lambda: daemon.spool._file.update(forgotten=5))  # 3 to 5
        switch()
        if server_url:
            engine.dispose()
        await daemon.notice()
        assert daemon.begun == [T0 + 6 * SECOND]
        await daemon.receive(
            fact("restated", at_us=T0 + 11 * SECOND, state="live", tickers=["A"], since_us=T0 + 6 * SECOND)
        )
        daemon.write()
        stored = [value for (value,) in query(engine, "SELECT value FROM observations ORDER BY ts")]
        assert stored == [0.5, 6, 7, 8, 9]
        (loss, _elsewhere) = [issue.message for issue in find_losses(engine)]
        assert "received from 2026-01-01 00:00:02 to 2026-01-01 00:00:06 UTC may be lost" in loss
        gaps = query(engine, "SELECT from_at, to_at, states FROM gaps")
        assert [(str(start)[17:19], str(end)[17:19], states) for start, end, states in gaps] == [("02", "06", "lost")]
        assert audit(engine) == []
    assert [rewind.entries for rewind in daemon.rewinds] == [4]


@pytest.mark.parametrize("went_back", [False, True], ids=["with the original's database", "with an older database"])
async def test_copy_of_a_spool_writes_what_it_keeps_only_if_the_database_lacks_it(
    start_daemon: Callable[..., Any], sqlite: Engine, tmp_path: Path, went_back: bool
) -> None:
    original = await start_daemon(sqlite)
    await begin(original)
    backup = Backup(sqlite)
    await original.receive(said(1, at=3), said(2, at=4))
    original.write()
    await original.beat(T0 + 5 * SECOND)  # syncs what is acknowledged
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    await original.receive(said(3, at=5))
    if went_back:
        backup.restore()
        await original.restart()  # takes the older instance over, but has not written yet
    else:
        original.write()
    copy = await start_daemon(sqlite, "two")
    await copy.receive(said(4, at=6))
    copy.write()
    ((first_seq,),) = query(sqlite, "SELECT min(first_seq) FROM batches WHERE instance_id = 2")
    assert first_seq == (1 if went_back else 5)
    await original.notice()
    values = [value for (value,) in query(sqlite, "SELECT value FROM observations ORDER BY ts")]
    assert values == [0.5, 1, 2, 3, 4]
    assert audit(sqlite) == []


# -- other instances


async def test_value_written_again_never_replaces_a_later_one_of_another_instance(
    start_daemon: Callable[..., Any], engine: Engine, tmp_path: Path, server_url: str
) -> None:
    one, two = await start_daemon(engine, "one"), await start_daemon(engine, "two")
    await begin(one)
    await begin(two)
    with database_with_copy(engine, tmp_path, server_url) as (_, switch):
        for daemon, value, at in ((one, 1, 3), (two, 2, 4), (one, 3, 5), (two, 4, 6)):
            await daemon.receive(said(value, at=at, minute=9))
            daemon.write()
        switch()
        if server_url:
            engine.dispose()
        await two.receive(said(5, at=7, minute=9))
        two.write()  # all of its own values, before the other one's older ones
        await one.notice()
        current = query(engine, "SELECT value, instance_id FROM observations WHERE value >= 1")
        assert current == [(5.0, 2)]
        assert query(engine, "SELECT value FROM revisions ORDER BY value") == [(1.0,), (2.0,), (3.0,), (4.0,)]
        assert query(engine, "SELECT position FROM instances ORDER BY instance_id") == [(4,), (5,)]
        assert audit(engine) == []
    assert [len(daemon.rewinds) for daemon in (one, two)] == [1, 1]


async def test_ids_of_an_instance_that_the_database_gave_to_another_are_not_used(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    """Both registrations are lost, and repeated in the other order."""
    empty = Backup(sqlite)
    one, two = await start_daemon(sqlite, "one"), await start_daemon(sqlite, "two")
    await begin(one)
    await begin(two)
    empty.restore()
    for daemon in (two, one):
        await daemon.beat(T0 + 9 * SECOND)
        daemon.write()
    assert [found for (found,) in query(sqlite, "SELECT spool_id FROM instances ORDER BY instance_id")] == [
        two.spool.spool_id,
        one.spool.spool_id,
    ]
    assert query(sqlite, "SELECT count(*) FROM payloads") == [(2,)]
    assert audit(sqlite) == []


# -- old entries are no news


async def test_old_entries_are_not_reported_again(start_daemon: Callable[..., Any], sqlite: Engine) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(said(1, at=3), said(2, at=4))
    daemon.write()
    heard, shown = list(daemon.heard), list(daemon.shown)
    backup.restore()
    await daemon.receive(said(3, at=5))
    daemon.write()  # one batch, of old entries and a new one
    assert daemon.heard[len(heard) :] == [T0 + 5 * SECOND] * 2  # for the ticker, and for the connection
    assert daemon.shown == [*shown, 3.0]


async def test_page_does_not_show_old_values_as_new(start_daemon: Callable[..., Any], sqlite: Engine) -> None:
    daemon, values = await start_daemon(sqlite), LatestValues()
    daemon.writer._committer._on_rows = values.add_rows
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(said(1, at=3, minute=7), said(2, at=4, minute=7))
    daemon.write()
    page = values.changed_since(0)
    backup.restore()
    await daemon.notice()
    assert len(daemon.rewinds) == 1
    assert values.changed_since(0).split(b",", 1)[1] == page.split(b",", 1)[1]  # but for its version


async def test_lag_is_that_of_the_entries_that_are_written_again(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(said(1, at=3), said(2, at=4))
    daemon.write()
    assert daemon.writer.status.oldest_us is None
    backup.restore()
    daemon.writer.register()
    assert daemon.writer.status.oldest_us == T0 + 3 * SECOND
    daemon.write()
    assert daemon.writer.status.oldest_us is None


async def test_time_is_not_proven_to_be_earlier_by_old_rows(start_daemon: Callable[..., Any], sqlite: Engine) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(said(1, at=3, minute=300))
    daemon.write()
    proven_us = daemon.writer._database.proven_time.now_us()
    assert proven_us is not None
    backup.restore()
    await daemon.notice()
    assert (daemon.writer._database.proven_time.now_us() or 0) >= proven_us


# -- dead letters


@pytest.mark.parametrize("origin", ["known", "of an older program", "of another instance that had this id"])
async def test_retry_of_a_lost_letter_marks_it_and_not_the_one_that_has_its_id_now(
    start_daemon: Callable[..., Any], sqlite: Engine, origin: str
) -> None:
    daemon, other = await start_daemon(sqlite), await start_daemon(sqlite, "other")
    await begin(daemon)
    await begin(other)
    backup = Backup(sqlite)
    bad = frame("{bad", received_us=T0 + 3 * SECOND)
    await daemon.receive(bad)
    daemon.write()
    if origin == "known":
        assert await requeue_dead_letters(daemon.spool, sqlite, [1]) == 1
    elif origin == "of an older program":
        await daemon.receive(structs.replace(bad, retry_of=1))
    else:
        earlier = {"received_us": bad.received_us - 1, "retry_origin": LetterOrigin(1, 3, None)}
        await daemon.receive(structs.replace(bad, retry_of=1, **earlier))
    daemon.write()
    backup.restore()
    await other.receive(frame("{other", received_us=T0 + 4 * SECOND))
    other.write()
    await daemon.notice()
    found = query(sqlite, "SELECT dead_letter_id, body, retried_at IS NULL FROM dead_letters ORDER BY 1")
    assert [(letter_id, body, bool(is_open)) for letter_id, body, is_open in found][:2] == [
        (1, "{other", True),
        (2, "{bad", origin != "known"),
    ]
    assert audit(sqlite) == []


async def test_letter_that_is_written_again_with_its_id_is_marked_as_retried(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    await daemon.receive(frame([row("A", value="x"), row("B", value="y")], received_us=T0 + 3 * SECOND))
    daemon.write()
    assert await requeue_dead_letters(daemon.spool, sqlite, [2]) == 1
    daemon.write()
    before = contents(sqlite)
    backup.restore()
    await daemon.notice()
    assert_nothing_is_lost(daemon, before)
    assert query(sqlite, "SELECT dead_letter_id FROM dead_letters WHERE retried_at IS NOT NULL") == [(2,)]


# -- backfills


async def test_backfill_that_was_requested_in_the_lost_time_is_requested_again(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    await request_backfill(daemon, day=1)
    backup = Backup(sqlite)
    await request_backfill(daemon, day=2)
    await daemon.receive(said(1, at=3))
    daemon.write()
    find = "SELECT from_ts, to_ts, kind, state FROM repairs ORDER BY from_ts"
    before = query(sqlite, find)
    backup.restore()
    assert len(query(sqlite, find)) == 1
    await daemon.notice()
    assert query(sqlite, find) == before
    assert [kind for *_, kind, _ in before] == ["manual", "manual"]
    assert audit(sqlite) == []


async def request_backfill(daemon: Daemon, *, day: int) -> None:
    """Request a day of A, as the daemon does for `ingestor backfill`."""
    start = to_datetime(T0) - timedelta(days=day)
    subscriptions = [Subscription(CROWD, params={"ticker": "A"})]
    requests = backfill_requests.build_requests(
        subscriptions, "A", None, start, start + timedelta(hours=1), to_datetime(T0)
    )
    rest = RestClient("http://127.0.0.1:9", lambda: SecretStr(""))
    engines = {"write_to": daemon.engine, "read_from": daemon.engine}
    worker = RepairWorker(rest, daemon.spool, daemon.writer, decoder(), daemon.spool.append, **engines)
    stored = asyncio.create_task(worker.request(requests))
    while not stored.done():
        await asyncio.to_thread(daemon.writer.step)
    assert len(await stored) == 1


# -- coverage and retention


async def test_coverage_is_the_same_after_its_facts_are_written_again(
    start_daemon: Callable[..., Any], sqlite: Engine
) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    end = T0 + 20 * SECOND
    restart = structs.replace(fact("clock_restarted", at_us=end, since_us=T0 + 15 * SECOND), until_us=end)
    crash = structs.replace(
        state("crashed", 30, since_us=T0 + 18 * SECOND), group=(CROWD, "{}"), detail={"reason": "killed"}
    )
    others = structs.replace(state("stopped", 33, tickers=["B"]), others=True)
    await daemon.receive(said(1, at=3), state("stopped", 4), state("pending", 5, tickers=["A", "B"]))
    await daemon.receive(state("live", 6, tickers=["A", "B"]), restart, state("silent", 16, tickers=["B"]), crash)
    await daemon.receive(state("live", 31, tickers=["A", "B"]), others, said(2, at=34))
    await daemon.beat(T0 + 35 * SECOND)
    daemon.write()
    before = contents(sqlite)
    for max_rows in (1, 5000):  # one entry a batch, and all in one
        backup.restore()
        limit_batches(daemon, max_rows)
        await daemon.notice()
        assert_nothing_is_lost(daemon, before)


async def test_rows_and_payloads_that_expire_before_they_are_written_again_balance(
    tmp_path: Path, start_daemon: Callable[..., Any], sqlite: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = await start_daemon(sqlite)
    await begin(daemon)
    backup = Backup(sqlite)
    for minute in range(3):
        await daemon.receive(said(minute, at=3 + minute, minute=minute))
    daemon.write()
    backup.restore()
    database = daemon.writer._database
    database._keep_samples_us = round(timedelta(days=1) / timedelta(microseconds=1))
    database.proven_time.note(T0 + 3 * 86_400 * SECOND)
    monkeypatch.setattr("ingestor.store.leases.database_time", lambda _: to_datetime(T0 + 3 * 86_400 * SECOND))
    await daemon.notice()
    assert query(sqlite, "SELECT sum(expired_rows), sum(new_rows) FROM batches") == [(3, 1)]
    with sqlite.begin() as connection:
        connection.execute(
            schema.payload_blocks.delete().where(schema.payload_blocks.c.received_at < to_datetime(T0 + 4 * SECOND))
        )
    assert audit(sqlite, samples_pruned=True) == []
