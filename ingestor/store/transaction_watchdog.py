"""Watch PostgreSQL transactions from another thread: end those that take too long, report a COMMIT that waits."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from ingestor.core.threads import start_thread
from ingestor.store import failures, postgres_session

TRANSACTION_TIMEOUT_SECONDS = 600.0
SLOW_COMMIT_SECONDS = 10.0

ReportCommit: TypeAlias = Callable[[str | None, float], None]  # what a COMMIT waits for, None: it has ended; seconds


@dataclass(slots=True)
class _Commit:
    started_at: float  # time.monotonic()
    describe: Callable[[], str]
    report: ReportCommit
    is_reported: bool = False


class TransactionWatchdog:
    """Shuts down connections whose transaction takes longer than ``TRANSACTION_TIMEOUT_SECONDS``.

    Nothing else finds a stopped backend: it does not enforce statement_timeout, its kernel still answers keepalives and
    acknowledges what we send, and a COMMIT that waits for a standby has no timeout at all.
    One thread watches all connections, since starting one takes longer than most transactions.
    """

    def __init__(self) -> None:
        self._started: dict[Any, float] = {}  # driver connection → time.monotonic()
        self._commits: dict[Any, _Commit] = {}  # by driver connection
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, driver_connection: Any) -> Iterator[None]:
        """Shut the connection down if the block takes too long. Does nothing for SQLite: there is no server."""
        if isinstance(driver_connection, sqlite3.Connection):
            yield
            return
        with self._lock:
            self._started[driver_connection] = time.monotonic()
            self._start()
        try:
            yield
        finally:
            with self._lock:
                self._started.pop(driver_connection, None)

    @contextmanager
    def watch_commit(self, driver_connection: Any, describe: Callable[[], str], report: ReportCommit) -> Iterator[None]:
        """Report if the block takes longer than ``SLOW_COMMIT_SECONDS``, and then its end.

        ``describe`` is called in the watchdog's thread, and returns what is known of the wait within seconds.
        """
        commit = _Commit(time.monotonic(), describe, report)
        with self._lock:
            self._commits[driver_connection] = commit
            self._start()
        try:
            yield
        finally:
            with self._lock:
                self._commits.pop(driver_connection, None)
                if commit.is_reported:
                    report(None, time.monotonic() - commit.started_at)

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="transaction-watchdog", daemon=True)
            start_thread(thread)
            self._thread = thread

    def _run(self) -> None:
        while True:
            time.sleep(min(TRANSACTION_TIMEOUT_SECONDS / 20, SLOW_COMMIT_SECONDS / 10, 1.0))
            self._shut_down_overdue()
            self._report_slow_commits()

    def _shut_down_overdue(self) -> None:
        deadline = time.monotonic() - TRANSACTION_TIMEOUT_SECONDS
        with self._lock:  # a transaction that ends now waits, so that its connection is not shut down in the next
            for connection in [connection for connection, at in self._started.items() if at < deadline]:
                postgres_session.shut_down(connection)

    def _report_slow_commits(self) -> None:
        deadline = time.monotonic() - SLOW_COMMIT_SECONDS
        with self._lock:
            commits = list(self._commits.items())
        for connection, commit in commits:
            if commit.started_at < deadline and not commit.is_reported:
                text = _describe(commit)
                with self._lock:  # its end is reported after this
                    if self._commits.get(connection) is commit:
                        commit.is_reported = True
                        commit.report(text, time.monotonic() - commit.started_at)


def _describe(commit: _Commit) -> str:
    try:
        return commit.describe()
    except Exception as error:  # no descriptor left, or the connection has just been closed: the thread must go on
        return f"a COMMIT gets no answer, and it is not known why: {failures.one_line(error)}"


watchdog = TransactionWatchdog()
