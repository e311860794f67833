"""Log into a real pipe whose reader is slow or absent."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from ingestor.core.redaction import redactor
from ingestor.monitoring import log_setup, nonblocking_stream
from ingestor.monitoring.nonblocking_stream import NonBlockingWriter

SECRET = "a-key-to-mask"
LINE = "x" * 1023 + "\n"
MANY = 2 * nonblocking_stream.MAX_QUEUED_CHARACTERS // len(LINE)  # more than pipe and queue hold together
log = logging.getLogger("ingestor.somewhere")

LOGGING_PROGRAM = """
import logging, sys
from ingestor.monitoring import log_setup
log_setup.configure("info", "json")
for number in range(int(sys.argv[1])):
    logging.getLogger("ingestor").info("%d %s", number, "x" * 1000)
"""


class Pipe:
    """A stream that writes into a pipe, and the pipe's reading end."""

    def __init__(self) -> None:
        self._end, end = os.pipe()
        self.stream: TextIO = os.fdopen(end, "w", encoding="utf-8")

    def read_all(self) -> str:
        """Close our writing end and return everything until all others are closed."""
        self.stream.close()
        with os.fdopen(self._end, encoding="utf-8") as reader:
            return reader.read()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def full(pipe: Pipe) -> Iterator[Pipe]:
    """Log more than pipe and queue hold, without a reader: a blocking writer would never return."""
    redactor.add(SECRET)
    log_setup.configure("info", "json", pipe.stream)
    logging.getLogger().handlers[:] = logging.getLogger().handlers[-1:]  # pytest's own are slow
    for number in range(MANY):
        log.info("%d %s %s", number, SECRET, "x" * 1000)
    yield pipe
    redactor.remove(SECRET)


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def close_logs() -> None:
    for handler in logging.getLogger().handlers:
        handler.close()


def missing_counts(lines: list[dict[str, Any]]) -> list[int]:
    notices = [line["event"] for line in lines if "were dropped here" in line["event"]]
    return [int(notice.split()[0]) for notice in notices]


@pytest.mark.timeout(30)
def test_logging_never_blocks_and_reports_dropped_lines(full: Pipe) -> None:
    close_logs()
    lines = lines_of(full.read_all())
    numbers = [int(line["event"].split()[0]) for line in lines[:-1]]
    assert numbers == list(range(len(numbers))), "the oldest lines are kept, in order"
    assert missing_counts(lines) == [MANY - len(numbers)]
    assert (lines[-1]["level"], lines[-1]["logger"]) == ("warning", "ingestor")


@pytest.mark.timeout(30)
def test_secret_is_masked_in_queued_lines(full: Pipe) -> None:
    redactor.remove(SECRET)  # as happens to a token's after some renewals
    close_logs()
    text = full.read_all()
    redactor.add(SECRET)
    assert "***" in text
    assert SECRET not in text


@pytest.mark.timeout(30)
def test_queue_is_bounded_and_dropped_lines_are_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonblocking_stream, "MAX_QUEUED_CHARACTERS", 10 * len(LINE))
    writer = NonBlockingWriter(pipe.stream, lambda count: f"{count} missing\n")
    for _ in range(200):
        writer.write(LINE)
    writer.close()
    lines = pipe.read_all().splitlines(keepends=True)
    assert lines[:-1] == [LINE] * (len(lines) - 1)
    assert lines[-1] == f"{200 - len(lines) + 1} missing\n"
    assert len(lines) <= 64 + 10 + 2, "pipe, queue, and the line that is being written"


@pytest.mark.timeout(30)
def test_flush_waits_for_a_reader_for_a_limited_time(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonblocking_stream, "FLUSH_SECONDS", 0.2)
    writer = NonBlockingWriter(pipe.stream, str)
    for _ in range(100):
        writer.write(LINE)
    began = time.monotonic()
    writer.flush()
    assert 0.2 <= time.monotonic() - began < 5
    writer.close()
    assert pipe.read_all() == LINE * 100


@pytest.mark.timeout(30)
def test_nonblocking_pipe_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    writer = NonBlockingWriter(pipe.stream, str)
    for _ in range(500):
        writer.write(LINE)
    writer.close()
    assert pipe.read_all() == LINE * 500


def test_process_ends_though_its_stderr_has_no_reader() -> None:
    command = [sys.executable, "-c", LOGGING_PROGRAM, str(MANY)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=buffered) as process:
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_process_writes_all_lines_before_it_ends() -> None:
    command = [sys.executable, "-c", LOGGING_PROGRAM, "500"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=20, check=True)
    assert [int(line["event"].split()[0]) for line in lines_of(done.stderr)] == list(range(500))
