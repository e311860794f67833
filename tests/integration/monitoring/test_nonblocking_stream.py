"""Log lines into a real pipe that nobody reads, or not yet."""

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

SECRET = "a-key-that-nobody-may-read"
LINE = "x" * 1023 + "\n"
MANY = 2 * nonblocking_stream.WAITING_CHARACTERS // len(LINE)  # more than pipe and outlet hold together
log = logging.getLogger("ingestor.somewhere")

NOISY = """
import logging, sys
from ingestor.monitoring import log_setup as logs
logs.configure("info", "json")
for number in range(int(sys.argv[1])):
    logging.getLogger("ingestor").info("%d %s", number, "x" * 1000)
"""


class Pipe:
    """A stream that writes into a pipe, and whoever reads at its other end."""

    def __init__(self) -> None:
        self._end, end = os.pipe()
        self.stream: TextIO = os.fdopen(end, "w", encoding="utf-8")

    def read_all(self) -> str:
        """Everything until the writing ends are closed."""
        self.stream.close()
        with os.fdopen(self._end, encoding="utf-8") as reader:
            return reader.read()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def full(pipe: Pipe) -> Iterator[Pipe]:
    """More is logged than pipe and outlet hold, and nobody reads: a writer who waits would never come back."""
    redactor.add(SECRET)
    log_setup.configure("info", "json", pipe.stream)
    logging.getLogger().handlers[:] = logging.getLogger().handlers[-1:]  # pytest's own would take their time
    for number in range(MANY):
        log.info("%d %s %s", number, SECRET, "x" * 1000)
    yield pipe
    redactor.forget(SECRET)


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def close_logs() -> None:
    for handler in logging.getLogger().handlers:
        handler.close()


def missing(lines: list[dict[str, Any]]) -> list[int]:
    notices = [line["event"] for line in lines if "are missing here" in line["event"]]
    return [int(notice.split()[0]) for notice in notices]


@pytest.mark.timeout(30)
def test_who_logs_never_waits_and_what_found_no_room_is_told_when_it_flows_again(full: Pipe) -> None:
    close_logs()
    lines = lines_of(full.read_all())
    numbers = [int(line["event"].split()[0]) for line in lines[:-1]]
    assert numbers == list(range(len(numbers))), "the oldest are kept, in order"
    assert missing(lines) == [MANY - len(numbers)]
    assert (lines[-1]["level"], lines[-1]["logger"]) == ("warning", "ingestor")


@pytest.mark.timeout(30)
def test_a_secret_is_masked_in_lines_that_waited(full: Pipe) -> None:
    redactor.forget(SECRET)  # as a token's is, some renewals later
    close_logs()
    text = full.read_all()
    redactor.add(SECRET)
    assert "***" in text
    assert SECRET not in text


@pytest.mark.timeout(30)
def test_the_lines_that_wait_are_bounded_and_those_that_were_dropped_counted(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonblocking_stream, "WAITING_CHARACTERS", 10 * len(LINE))
    made = NonBlockingWriter(pipe.stream, lambda count: f"{count} missing\n")
    for _ in range(200):
        made.write(LINE)
    made.close()
    lines = pipe.read_all().splitlines(keepends=True)
    assert lines[:-1] == [LINE] * (len(lines) - 1)
    assert lines[-1] == f"{200 - len(lines) + 1} missing\n"
    assert len(lines) <= 64 + 10 + 2, "what Linux keeps in a pipe, what waits, and one being written"


@pytest.mark.timeout(30)
def test_flushing_waits_for_a_reader_for_a_bounded_time(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonblocking_stream, "FLUSH_SECONDS", 0.2)
    made = NonBlockingWriter(pipe.stream, str)
    for _ in range(100):
        made.write(LINE)
    began = time.monotonic()
    made.flush()
    assert 0.2 <= time.monotonic() - began < 5
    made.close()
    assert pipe.read_all() == LINE * 100


@pytest.mark.timeout(30)
def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    made = NonBlockingWriter(pipe.stream, str)
    for _ in range(500):
        made.write(LINE)
    made.close()
    assert pipe.read_all() == LINE * 500


def test_a_process_whose_stderr_nobody_reads_ends_all_the_same() -> None:
    command = [sys.executable, "-c", NOISY, str(MANY)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=buffered) as process:
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_a_process_that_ends_leaves_no_line_behind() -> None:
    command = [sys.executable, "-c", NOISY, "500"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=20, check=True)
    assert [int(line["event"].split()[0]) for line in lines_of(done.stderr)] == list(range(500))
