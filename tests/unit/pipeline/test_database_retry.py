from __future__ import annotations

import threading
import time

import pytest

from ingestor.errors import DatabaseUnavailable, DatabaseUnsupported
from ingestor.pipeline.committer import BACKOFF, DatabaseRetry
from ingestor.pipeline.writer_status import WriterStatus


class Attempts:
    """A call that fails ``failures`` times."""

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if self.count <= self._failures:
            raise DatabaseUnavailable(f"away {self.count}" if self.count < 40 else "locked")


def test_retry_repeats_until_success_and_reports_an_outage_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    status, outages, slept = WriterStatus(), list[tuple[str, float]](), list[float]()
    attempts = Attempts(50)

    def on_outage(error: str, delay_seconds: float) -> None:
        assert (status.database_up, status.error, status.failed_attempts) == (False, error, attempts.count)
        outages.append((error, delay_seconds))

    retry = DatabaseRetry(status, threading.Event(), threading.Event(), on_outage, slept.append)
    assert retry.run(attempts)
    assert [error for error, _ in outages] == ["away 1", "locked"]
    assert (attempts.count, len(slept)) == (51, 50)
    assert (slept[0], slept[39]) == tuple(delay_seconds for _, delay_seconds in outages)
    assert all(delay <= BACKOFF.ceiling(failures) for failures, delay in enumerate(slept, 1))
    assert (status.database_up, status.error, status.failed_attempts) == (True, None, 0)
    assert caplog.records[0].__dict__["failed_attempts"] == 50
    assert caplog.messages == ["the database is available again, writing what is in the spool"]
    assert retry.run(attempts)
    assert len(caplog.messages) == 1, "only the end of an outage is reported"


def test_retry_ends_with_the_first_failure_after_stop() -> None:
    stop = threading.Event()
    attempts = Attempts(9)
    retry = DatabaseRetry(WriterStatus(), stop, threading.Event(), lambda _error, _delay: stop.set())
    assert not retry.run(attempts)
    assert attempts.count == 2


def test_retry_raises_other_errors_at_once() -> None:
    def fail() -> None:
        raise KeyError

    retry = DatabaseRetry(WriterStatus(), threading.Event(), threading.Event(), lambda _error, _delay: None)
    with pytest.raises(KeyError):
        retry.run(fail)


def test_unsupported_database_ends_a_first_start_but_is_retried_later() -> None:
    def fail() -> None:
        raise DatabaseUnsupported("a pooler")

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert worked, "retried"

    slept, worked = list[float](), False
    retry = DatabaseRetry(WriterStatus(), threading.Event(), threading.Event(), lambda _error, _delay: None, sleep)
    with pytest.raises(DatabaseUnsupported):
        retry.run(fail)
    worked = retry.run(lambda: None)
    answers = iter([fail, fail, lambda: None])
    assert retry.run(lambda: next(answers)())
    assert len(slept) == 2


def test_unsupported_database_after_an_outage_does_not_end_the_daemon() -> None:
    errors: list[Exception] = [DatabaseUnavailable("down since the start"), DatabaseUnsupported("a pooler")]

    def attempt() -> None:
        if errors:
            raise errors.pop(0)

    retry = DatabaseRetry(
        WriterStatus(), threading.Event(), threading.Event(), lambda _error, _delay: None, lambda _seconds: None
    )
    assert retry.run(attempt)


def test_wait_between_attempts_is_short_while_draining() -> None:
    draining = threading.Event()
    draining.set()
    retry = DatabaseRetry(WriterStatus(), threading.Event(), draining, lambda _error, _delay: None)
    started = time.monotonic()
    retry._wait(60)
    assert time.monotonic() - started < 30
