"""The watchdog's thread outlives whatever goes wrong while it asks what a COMMIT waits for."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from ingestor.store import transaction_watchdog
from ingestor.store.transaction_watchdog import TransactionWatchdog


def test_watchdog_goes_on_after_a_wait_that_cannot_be_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_watchdog, "SLOW_COMMIT_SECONDS", 0.05)
    watchdog = TransactionWatchdog()
    reports: SimpleQueue[str | None] = SimpleQueue()

    def fail() -> str:
        raise OSError(24, "Too many open files")

    for describe, expected in ((fail, "Too many open files"), (lambda: "a COMMIT waits", "a COMMIT waits")):
        with watchdog.watch_commit(object(), describe, lambda waiting, _: reports.put(waiting)):
            assert expected in (reports.get(timeout=10) or "")
        assert reports.get(timeout=10) is None
