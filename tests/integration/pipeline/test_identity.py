"""Copies of a spool, and older ones: what each run receives is stored, and no run takes another's entries for its own.

A run of the daemon is a Spool that was opened, and a writer. A copy of its folder is what a backup or a clone of the
machine has.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from ingestor.errors import PositionConflict
from ingestor.spool import header
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine, transaction
from ingestor.store.read.audit import audit, find_losses
from ingestor.store.write.batch import Batch
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, Ownership, SpoolExtent
from tests.support.entries import T0, fact, frame, row
from tests.support.postgres_server import fresh_database
from tests.support.writers import make_writer, put, query, raise_failure

SECOND = 1_000_000


class Run:
    """One run of a daemon, from the opening of its spool on."""

    def __init__(self, spool: Spool, engine: Engine, name: str, started_us: int) -> None:
        self.spool = spool
        self.said: list[tuple[str, str]] = []
        self.tickers: list[str] = []
        self._name = name
        self._started_us = started_us
        self._closed = False
        self.writer = make_writer(
            spool,
            engine,
            name=name,
            started_us=started_us,
            on_lost=lambda reason, _since_us: self.said.append(("lost", reason)),
            on_other_run=lambda reason: self.said.append(("copied", reason)),
        )

    async def receive(self, number: int = 5) -> None:
        """Become live, and receive this number of frames, each with a ticker that no other frame has."""
        await put(self.spool, fact("subscribed", at_us=self._started_us, state="live", tickers=["A", self._name]))
        for _ in range(number):
            self.tickers.append(f"{self._name}{len(self.tickers)}")
            await put(self.spool, frame([row(self.tickers[-1])]))

    async def write(self, heartbeat_us: int | None = None) -> None:
        """Write everything that was received, after registering if that was not done, and publish a heartbeat."""
        if heartbeat_us is not None:
            self.spool.heartbeat(heartbeat_us)
            await put(self.spool, fact())
        if not self.writer.status.position:
            self.writer.register()
        self.writer.step()
        while not self.writer.drained:
            self.writer.step()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.spool.close()


@pytest.fixture
async def open_run(tmp_path: Path, engine: Engine) -> AsyncIterator[Callable[..., Run]]:
    """``open_run(folder, name, started_us=T0)``: a new run on the spool in that folder."""
    async with AsyncExitStack() as stack:

        def open_(folder: str, name: str, started_us: int = T0) -> Run:
            spool = Spool(tmp_path / folder, max_bytes=1 << 30, sync_every_seconds=0.001)
            spool.start(raise_failure)
            run = Run(spool, engine, name, started_us)
            stack.push_async_callback(run.close)
            return run

        yield open_


async def begin_run(open_run: Callable[..., Run], name: str) -> Run:
    """Start a run on the folder ``spool`` that has received something and written it."""
    run: Run = open_run("spool", name)
    await run.receive()
    await run.write()
    return run


def stored(engine: Engine) -> set[str]:
    return {ticker for (ticker,) in query(engine, "SELECT ticker FROM observations")}


def coverage_of(engine: Engine, instance_id: int) -> list[tuple[Any, ...]]:
    return query(engine, f"SELECT * FROM coverage WHERE instance_id = {instance_id} ORDER BY start_seq")


async def test_run_after_many_without_the_database_is_the_same_instance(
    open_run: Callable[..., Run], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header, "KNOWN_RUNS", 2)
    for number in range(6):
        run = open_run("spool", "first")
        await run.receive(1)
        if number in (0, 5):
            await run.write()
        await run.close()
    assert not run.said
    assert query(engine, "SELECT count(*) FROM instances") == [(1,)]


# -- one spool goes back


@pytest.mark.parametrize("copied", ["before the next run", "during the run"])
async def test_older_spool_stores_what_comes_and_tells_what_is_gone(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine, copied: str
) -> None:
    first = second = open_run("spool", "first")
    await first.receive()
    await first.write()
    if copied == "before the next run":
        await first.close()
    shutil.copytree(tmp_path / "spool", tmp_path / "older")
    if copied == "before the next run":
        second = open_run("spool", "second")
    await second.receive(20)
    await second.write(heartbeat_us=T0 + 5 * SECOND)
    assert not second.said

    third = open_run("older", "third", T0 + 60 * SECOND)
    await third.receive(10)  # while the database is away: its seqs are those of entries that are committed
    await third.write()
    assert stored(engine) == {*first.tickers, *second.tickers, *third.tickers}
    ((kind, reason),) = third.said
    assert kind == "lost"
    if copied == "before the next run":
        assert reason.startswith("another run writes as instance 1 (second): this spool is a copy")
    else:  # as if the end of the file were damaged: there may be no other run
        assert reason.startswith(
            "entries up to 28 were written as instance 1 (first), and this spool has them up to 6 "
        )
        assert "it is damaged, an older copy, or" in reason
    (loss,) = [issue.message for issue in find_losses(engine) if issue.check == "lost"]
    assert "subscriptions received from 2026-01-01 00:00:05 to 2026-01-01 00:01:00 UTC may be lost" in loss
    assert audit(engine) == []


async def test_older_spool_is_no_loss_if_the_later_run_came_to_its_end(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine
) -> None:
    for name in ("first", "second"):
        run = open_run("spool", name)
        await run.receive()
        await put(run.spool, fact("stopped", at_us=T0 + SECOND, state="stopped"))
        await run.write(T0 + SECOND)
        await run.close()
        if name == "first":
            shutil.copytree(tmp_path / "spool", tmp_path / "older")
    third = open_run("older", "third", T0 + 60 * SECOND)
    await third.write()
    assert [kind for kind, _ in third.said] == ["copied"]
    assert coverage_of(engine, 2) == []
    assert audit(engine) == []


async def test_older_spool_that_grew_before_it_was_written_is_recognised(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine
) -> None:
    """The run that finds the database has more entries than were committed. What counts is what the first has left."""
    first = open_run("spool", "first")
    await first.receive()
    shutil.copytree(tmp_path / "spool", tmp_path / "older")
    await first.receive()
    await first.write(heartbeat_us=T0 + 5 * SECOND)

    second = open_run("older", "second", T0 + 60 * SECOND)
    await second.receive(10)  # while the database is away
    await second.close()
    third = open_run("older", "third", T0 + 90 * SECOND)
    await third.receive()
    await third.write()
    assert stored(engine) == {*first.tickers, *second.tickers, *third.tickers}
    assert audit(engine) == []


async def test_spool_without_its_last_entries_goes_on_as_the_same_instance(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine
) -> None:
    first = await begin_run(open_run, "first")
    await first.close()
    second = open_run("spool", "second")
    await second.receive()
    await second.write()
    assert second.said == []
    assert query(engine, "SELECT name, position FROM instances") == [("second", second.spool.head)]


# -- one spool on two hosts


@pytest.mark.parametrize("both_before", [False, True], ids=["one after the other", "both before the database"])
@pytest.mark.parametrize("copied", ["never registered", "stopped", "killed"])
async def test_second_of_two_copies_becomes_another_instance(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine, copied: str, both_before: bool
) -> None:
    original = open_run("spool", "original")
    if copied != "never registered":
        await original.receive()
        await original.write(heartbeat_us=T0 + SECOND)
    if copied == "stopped":
        await original.close()
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "spool", tmp_path / name)
    one = open_run("one", "one", T0 + 2 * SECOND)
    await one.receive(7)
    if not both_before:
        await one.write()
    two = open_run("two", "two", T0 + 2 * SECOND)
    await two.receive(4)
    await one.write(heartbeat_us=T0 + 3 * SECOND)
    before = coverage_of(engine, 1)
    await two.write(heartbeat_us=T0 + 3 * SECOND)
    assert coverage_of(engine, 1) == before
    for run in (one, two):
        await run.receive(3)
        await run.write(heartbeat_us=T0 + 4 * SECOND)
    await assert_both_go_on(engine, one, two, original.tickers)


async def test_second_copy_leaves_the_first_one_alone_that_has_written_nothing_yet(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine
) -> None:
    original = await begin_run(open_run, "original")
    await original.close()
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "spool", tmp_path / name)
    one, two = open_run("one", "one"), open_run("two", "two")
    one.writer.register()
    for run in (two, one):
        await run.receive(3)
        await run.write()
    await assert_both_go_on(engine, one, two, original.tickers)


async def test_run_whose_instance_was_taken_over_writes_nothing_as_that_instance(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine
) -> None:
    original = await begin_run(open_run, "original")
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    copy = open_run("copy", "copy")
    copy.writer.register()
    await original.receive()  # while the copy has nothing to write: the position is where the original left it
    await original.write()
    await copy.receive()
    await copy.write()
    await assert_both_go_on(engine, copy, original, [])


async def test_original_that_a_copy_has_replaced_becomes_another_instance(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine
) -> None:
    original = await begin_run(open_run, "original")
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    copy = open_run("copy", "copy")  # idle since then, so that this looks like a restart
    await copy.receive()
    await copy.write()
    await original.receive()
    await original.write()
    await assert_both_go_on(engine, copy, original, [])


async def test_copy_of_a_running_process_becomes_another_instance(
    tmp_path: Path, open_run: Callable[..., Run], engine: Engine
) -> None:
    """A clone of a virtual machine: both have the same run id, and both believe to be where the database is."""
    original = open_run("spool", "original")
    await original.receive()
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    copy = open_run("copy", "copy")
    copy.spool.run_id, copy.spool.opened_head = original.spool.run_id, original.spool.opened_head
    for run in (original, copy):
        run.writer.register()
    for run in (original, copy):
        await run.receive(3)
        await run.write()
    await assert_both_go_on(engine, original, copy, [])


async def assert_both_go_on(engine: Engine, first: Run, second: Run, before: list[str]) -> None:
    """Assert that the first kept instance 1 and the second became 2, with everything stored and both live."""
    assert stored(engine) == {*before, *first.tickers, *second.tickers}
    assert first.said == []
    ((kind, reason),) = second.said
    assert kind == "copied"
    assert f"as instance 1 ({first._name})" in reason
    assert query(engine, "SELECT name FROM instances ORDER BY instance_id") == [(first._name,), (second._name,)]
    for run, instance_id in ((first, 1), (second, 2)):
        position = query(engine, f"SELECT position FROM instances WHERE instance_id = {instance_id}")
        assert position == [(run.spool.head,)]
    assert audit(engine) == []


# -- a killed run whose last commit comes late


@pytest.mark.postgres
def test_late_commit_of_a_killed_run_comes_before_the_next_registration_or_never(
    postgres_template_url: str, postgres_server_url: str
) -> None:
    with fresh_database(postgres_server_url, postgres_template_url) as url:
        engine, other = (make_engine(url.replace("postgresql://", "postgresql+psycopg://")) for _ in range(2))
        is_written, commit = threading.Event(), threading.Event()

        @contextmanager
        def begin() -> Iterator[Connection]:
            with transaction(engine) as connection:
                yield connection
                if connection.execute(text("SELECT count(*) FROM batches")).scalar_one():
                    is_written.set()
                    assert commit.wait(10)

        killed, following = BatchWriter(engine, begin=begin), BatchWriter(other)
        info = InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0, run_id="first")
        killed.register(info)
        with ThreadPoolExecutor(2) as threads:
            writing = threads.submit(killed.write, Batch(first_seq=1, last_seq=1, frames=1))
            assert is_written.wait(10)
            extent = SpoolExtent(1, 1, {"first"}.__contains__)
            registering = threads.submit(following.register, replace(info, run_id="second"), extent)
            with pytest.raises(TimeoutError):
                registering.result(timeout=0.2)
            commit.set()
            writing.result(10)
            found = registering.result(10)
        assert (found.ownership, found.position) == (Ownership.OURS, 1)
        with pytest.raises(PositionConflict):
            killed.write(Batch(first_seq=2, last_seq=2, frames=1))
        following.write(Batch(first_seq=2, last_seq=2, frames=1))
        assert query(engine, "SELECT first_seq FROM batches ORDER BY first_seq") == [(1,), (2,)]
        engine.dispose()
        other.dispose()
