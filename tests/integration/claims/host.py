"""A host: the daemon's real ``Service`` over a real spool and database, on the world's clocks and connections.

Replaced are only its ends: sockets (``provider``), clocks and threads (``virtual_time``), the login's HTTP request, the
status page, the control socket, and APScheduler, which reads the wall clock by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pydantic import SecretStr
from sqlalchemy import event

from ingestor.config import Config
from ingestor.core import backoff
from ingestor.core.clock import boottime
from ingestor.core.entries import Fact, Frame, FrameRun
from ingestor.daemon import factory, instance_cache, service, watchers
from ingestor.errors import IngestorError
from ingestor.pipeline import committer
from ingestor.provider.auth import token_source
from ingestor.provider.auth.claims import Token
from ingestor.provider.socket import connection
from ingestor.repair import RepairWorker, plan
from ingestor.repair import worker as repair_worker
from ingestor.spool import ballast
from ingestor.spool import spool as spool_module
from ingestor.spool.spool import Spool

from .judge import Memory
from .provider import ClientSession, Provider, Rest
from .virtual_time import Clocks, InlineExecutor, Killed, TurnThread, VirtualLoop

SLICE_SECONDS = 0.25  # in which the parts of a host take turns while it stops
STOP_SECONDS = 30.0
MAX_TURNS = 60  # of the writer, to write everything
TOKEN_SECONDS = 60.0
RESPONSE_SECONDS = 10.0  # after a gap, in which responses to a subscription may come
UNSYNCED_BYTES = 1_500  # a few frames: then reading pauses

_current: list[Host] = []  # the host whose code runs
_engines: dict[tuple[str, str, bool], Any] = {}  # by URL, host and use


class _Idle(BaseException):
    """The spool's thread has nothing to do."""


class _InlineQueue:
    """The spool's queue: putting something into it empties it, as the thread would. ``stalled``: a slow disk."""

    def __init__(self, spool: InlineSpool) -> None:
        self._spool = spool
        self._items: deque[Any] = deque()
        self.stalled = False
        self.dead = False

    def put(self, item: Any) -> None:
        self._items.append(item)
        if not self.stalled:
            self.run()

    def run(self) -> None:
        if self.dead or not self._items:
            return
        self._spool.synced_wall_us = self._spool.host.clocks.wall_us
        try:
            self._spool._run()
            self.dead = True
        except _Idle:
            pass
        self._spool.note_clocks()

    def get(self) -> Any:
        if not self._items:
            raise _Idle
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise Empty
        return self._items.popleft()


class InlineSpool(Spool):
    """A spool without a thread. Remembers what was appended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.host = _current[-1]
        self.host.spool = self
        self.appended: list[tuple[int, str]] = []  # (seq, text) of each frame
        self.inline_queue = _InlineQueue(self)
        self.synced_wall_us = self.host.clocks.wall_us
        self._clock_facts: list[tuple[int, int]] = []  # seq of a fact, and the setting of the clock that it tells
        self._queue = self.inline_queue  # type: ignore[assignment]
        self._thread = SimpleNamespace(start=lambda: None, join=lambda: None, is_alive=lambda: True)  # type: ignore[assignment]

    def append(self, item: FrameRun | Frame | Fact) -> int:
        if self.inline_queue.dead:
            return self.head
        seq = super().append(item)
        if isinstance(item, FrameRun):
            self.appended += enumerate(item.texts, seq - len(item.texts) + 1)
        elif isinstance(item, Frame):
            self.appended.append((seq, item.text))
        elif item.kind in ("started", "clock_restarted"):
            self._clock_facts.append((seq, self.host.provider.clock_era))
        return seq

    def reset_id(self, *, keep: bool = True) -> None:
        self.inline_queue.stalled = False  # the caller waits for the disk
        super().reset_id(keep=keep)
        self.host.note_clock(self.first_seq(), self.host.provider.clock_era)

    def rewind(self, position: int) -> bool:
        self.inline_queue.stalled = False  # the caller waits for the disk
        return super().rewind(position)

    def wait(self, after_seq: int, max_wait_seconds: float, min_entries: int = 1) -> bool:
        if max_wait_seconds > 0:
            self.host.writer.pause()
        self._woken = False
        return self.synced > after_seq

    def note_server(self, system: str, timeline: int) -> None:
        self.inline_queue.stalled = False  # the caller waits for the disk
        super().note_server(system, timeline)

    def note_clocks(self) -> None:
        while self._clock_facts and self._clock_facts[0][0] <= self.synced:
            self.host.note_clock(*self._clock_facts.pop(0))

    def durable_rows(self) -> set[tuple[str, str]]:
        """(ticker, ts) of every row of a frame that is durable."""
        rows = [row for seq, text in self.appended if seq <= self.synced for row in _rows(text)]
        return {(row["ticker"], row["ts"]) for row in rows}


def _rows(text: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(text[2:])[1] if text.startswith("42") else json.loads(text)
    return rows


class DatabaseFaults:
    """What the connections of a daemon to its database meet."""

    def __init__(self) -> None:
        self.away = False
        self.broken = False  # the next statement finds its connection cut
        self.at_commit = ""  # undone, done, kill_before, kill_after

    def check_server(self) -> None:
        if self.away:
            raise sqlite3.OperationalError("the database is away")

    def check(self, database: Any) -> None:
        self.check_server()
        if self.broken:
            self.broken = False
            database.engine.pool.dispose()
            database.invalidate()
            raise sqlite3.OperationalError("the connection was cut")

    def before_commit(self, database: Any) -> None:
        fault, self.at_commit = self.at_commit, ""
        if fault in ("done", "kill_after"):
            database.connection.dbapi_connection.commit()
        if fault:
            database.invalidate()
        if fault.startswith("kill"):
            raise Killed
        if fault:
            raise sqlite3.OperationalError("the connection was cut during COMMIT")


def _meet_faults(engine: Any) -> None:
    event.listen(engine, "before_cursor_execute", lambda database, *_: _current[-1].faults.check(database))
    event.listen(engine, "begin", lambda database: _current[-1].faults.check(database))
    event.listen(engine, "do_connect", lambda *_: _current[-1].faults.check_server())
    event.listen(engine, "commit", lambda database: _current[-1].faults.before_commit(database))


class Host:
    """One daemon, with its runs."""

    def __init__(
        self, name: str, folder: Path, config: Config, clocks: Clocks, provider: Provider, memories: dict[str, Memory]
    ) -> None:
        self.name, self.folder, self.clocks, self.provider = name, folder, clocks, provider
        self._config = config
        self._memories = memories
        self.faults = DatabaseFaults()
        self.running = False
        self.ended_with: list[str] = []
        self.spool: InlineSpool
        self.writer: TurnThread
        self.worker: RepairWorker

    def note_clock(self, seq: int, era: int) -> None:
        """Note that its instance, which may begin now, durably knows how the clock is set."""
        self._memories.setdefault(self.spool.spool_id, Memory(self.clocks.true_us)).clock_eras.setdefault(era, seq)

    def start(self) -> bool:
        """Start the daemon. Returns whether it runs."""
        assert not self.running
        self.faults.at_commit = ""
        with self._as_current():
            self._loop = VirtualLoop(self.clocks)
            try:
                self._service = service.Service(self._config, SecretStr("key"))
            except IngestorError as error:
                self.ended_with.append(repr(error))
                self._loop.close()
                return False
            self._task = self._loop.create_task(self._service.run())
            self.running = True
        self.run_until(self.clocks.now)
        return self.running

    def run_until(self, now: float) -> None:
        if not self.running:
            return
        with self._as_current():
            self._loop.run_until(now)
        if self._task.done():
            self._note_end()

    def write(self, turns: int) -> None:
        """Let the writer take turns. A fault at its commit may kill the host."""
        for _ in range(turns):
            if not self.running or self.writer.ended:
                return
            with self._as_current():
                self.writer.go()
            if self.writer.ended and self.writer.died:
                self.kill()

    def drain(self) -> None:
        """Let the writer write everything, and then the heartbeat."""
        for _ in range(MAX_TURNS):
            if not self.running or self._service._writer.drained:
                break
            self.write(1)
        self.write(2)

    def repair(self) -> bool:
        """Let the worker that repairs gaps do one round. Returns whether it came to its end."""
        if not self.running:
            return False
        self.worker.wake()
        thread = self._repair_thread = TurnThread(self.worker._try_round)
        for _ in range(MAX_TURNS):
            with self._as_current():
                thread.go()
            if thread.ended or not self.running:
                break
            self.write(2)
            self.run_until(self.clocks.now + 0.03)
        ended = thread.ended
        thread.kill()
        return ended

    def wait_in_repair(self, future: Any) -> Any:
        """Wait for the writer, in the thread of the repair."""
        while not future.done():
            self._repair_thread.pause()
        return future.result()

    def stop(self) -> None:
        """Stop the daemon as SIGTERM does."""
        if not self.running:
            return
        self.stall(False)
        self._loop.call_soon(self._service.stop)
        until = self.clocks.now + STOP_SECONDS
        while self.running and self.clocks.now < until:
            self.run_until(self.clocks.now + SLICE_SECONDS)
            self.write(3)
        assert not self.running, "the daemon does not stop"

    def kill(self) -> None:
        """End the daemon as kill -9 does: its files stay as they are."""
        if not self.running:
            return
        self.running = False
        copy = self.folder.with_name(self.folder.name + ".killed")
        self.copy_files(copy)
        queue = self.spool.inline_queue
        queue.dead = True
        with self._as_current():
            self.writer.kill()
            for socket in self.provider.of(self.name):
                socket.abandon()
            self._loop.discard()
        self._release()
        shutil.rmtree(self.folder)
        copy.rename(self.folder)

    def copy_files(self, to: Path) -> None:
        """Copy the spool's folder as a kill would leave it."""
        shutil.copytree(self.folder, to, ignore=shutil.ignore_patterns("*-shm", "*.sock"))
        for file in to.iterdir():
            if file.is_file():
                os.utime(file, ns=(self.spool.synced_wall_us * 1000, self.spool.synced_wall_us * 1000))

    def stall(self, stalled: bool) -> None:
        """Let the spool's disk answer no longer, or again."""
        if self.running:
            self.spool.inline_queue.stalled = stalled
            with self._as_current():
                self.spool.inline_queue.run()

    def _note_end(self) -> None:
        self.running = False
        error = self._task.exception()
        if error is not None:
            self.ended_with.append(repr(error))
            if not isinstance(error, IngestorError):
                raise error
        for _ in range(5):
            if not self.writer.ended:
                self.writer.go()
        for socket in self.provider.of(self.name):
            socket.abandon()
        self._loop.discard()

    def _release(self) -> None:
        spool = self.spool
        with suppress(sqlite3.Error):
            spool._reader.close()
            spool._file.close()
        spool._lock.release()
        self._service._engine.dispose()
        self._service._database_lock.close()

    @contextmanager
    def _as_current(self) -> Iterator[None]:
        _current.append(self)
        try:
            yield
        finally:
            _current.pop()


class _Scheduler:
    """Runs jobs at a boottime. Those at an interval (retention, search for gaps) are not part of the world."""

    def __init__(self) -> None:
        self._jobs: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def shutdown(self) -> None:
        for job in self._jobs.values():
            job.cancel()

    def every(self, *_: Any, **__: Any) -> None:
        pass

    def at(self, name: str, job: Callable[[], Awaitable[object]], due_at: float) -> None:
        if name in self._jobs:
            self._jobs[name].cancel()
        self._jobs[name] = self._loop.call_later(max(0.0, due_at - boottime()), self._run, job)

    def _run(self, job: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.ensure_future(job())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def reschedule_all(self) -> None:
        pass


class _StatusServer:
    url = "http://nowhere"

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


def _build_repair_worker(*args: Any) -> RepairWorker:
    host = _current[-1]
    host.worker = _real_build_repair_worker(*args)
    host.worker.start = lambda: None  # type: ignore[method-assign]
    host.worker._wait_for = host.wait_in_repair  # type: ignore[method-assign]
    return host.worker


@asynccontextmanager
async def _no_control_server(*_: Any) -> Any:
    yield


def _fetch_token(*_: Any, **__: Any) -> Token:
    return Token(value=f"token{boottime():.6f}", requested_at=boottime(), life_seconds=TOKEN_SECONDS)


async def _run_inline(call: Callable[[], Any], _name: str) -> Any:
    await asyncio.sleep(0.01)
    return call()


def _writer_thread(target: Callable[[], None], **_: Any) -> TurnThread:
    thread = _current[-1].writer = TurnThread(target)
    return thread


def _make_engine(url: str, **options: Any) -> Any:
    """Every run of a host gets the same engine: compiling its statements takes longer than running them."""
    key = url, _current[-1].name, "read_only" in options
    if key not in _engines:
        _engines[key] = _real_make_engine(url, **options)
        _meet_faults(_engines[key])
    return _engines[key]


def _build_writer(*args: Any, **hooks: Any) -> Any:
    host = _current[-1]
    return _real_build_writer(*args, sleep=lambda seconds: host.writer.pause(), **hooks)


_real_make_engine, _real_build_writer = service.make_engine, factory.build_writer
_real_build_repair_worker = factory.build_repair_worker


@contextmanager
def world_around(clocks: Clocks, seed: int) -> Iterator[None]:
    """Replace the ends of every daemon that runs in the block."""

    def http_session(*_: Any) -> ClientSession:
        host = _current[-1]
        return ClientSession(lambda url: host.provider.connect(url, host.name))

    replaced: list[tuple[Any, str, Any]] = [
        (backoff, "_RANDOM", random.Random(seed)),
        (ballast, "BALLAST_BYTES", 4096),
        (spool_module, "MAX_UNSYNCED_BYTES", UNSYNCED_BYTES),
        (factory, "Spool", InlineSpool),
        (factory, "build_writer", _build_writer),
        (factory, "build_repair_worker", _build_repair_worker),
        (factory, "make_engine", _make_engine),
        (factory, "RestClient", lambda *_, **__: Rest(_current[-1].provider)),
        (repair_worker, "_now", lambda: datetime.fromtimestamp(clocks.wall_us / 1_000_000, UTC)),
        (repair_worker, "PAGE_PAUSE_SECONDS", 0.0),
        (plan, "RESPONSE_TIMEOUT", timedelta(seconds=RESPONSE_SECONDS)),
        (factory.migrate, "verify_revision", lambda _engine: None),
        (service, "make_engine", _make_engine),
        (service, "threading", SimpleNamespace(Thread=_writer_thread)),
        (service, "StatusServer", _StatusServer),
        (service, "control_server", _no_control_server),
        (service.scheduler, "JobScheduler", _Scheduler),
        (service.log_setup, "log_fact", lambda _fact: None),
        (watchers, "SPOOL_CHECK_SECONDS", 2.0),
        (watchers, "HISTORY_SECONDS", 3600.0),
        (instance_cache, "CHECK_SECONDS", 3600.0),  # only the status shows it
        (committer, "DaemonExecutor", InlineExecutor),
        (token_source, "fetch_token", _fetch_token),
        (token_source, "run_in_daemon_thread", _run_inline),
        (connection, "http_session", http_session),
    ]
    disabled = logging.root.manager.disable
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(clocks.patched())
        stack.enter_context(mock.patch.object(service.signal, "pthread_sigmask", lambda *_: None))
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        yield
