from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from ingestor.monitoring import journald, log_setup

log = logging.getLogger("ingestor.somewhere")


@pytest.fixture
def stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A stream that the environment declares to be connected to the journal."""
    with (tmp_path / "stderr").open("w+", encoding="utf-8") as stream:
        stat = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        monkeypatch.setattr(journald, "SOCKET_PATH", tmp_path / "journal")
        yield stream


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """The receiving end, opened as journald does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "journal"))
        channel.settimeout(5)
        yield channel


def text_of(stream: TextIO) -> str:
    for handler in logging.getLogger().handlers:
        handler.flush()
    return Path(stream.name).read_text(encoding="utf-8")


def test_journal_receives_fields(stderr: TextIO, journal: socket.socket) -> None:
    logging.getLogger().handlers[:] = []  # pytest's own leave their text on the record
    log_setup.configure("info", "auto", stderr)
    log.warning("refused", extra={"path": "/real-time/tweet-buzz", "näm e": ["a"]})
    assert journal.recv(65536).decode().splitlines() == [
        "MESSAGE=refused                        [ingestor.somewhere] näm e=['a'] path='/real-time/tweet-buzz'",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=ingestor",
        "INGESTOR_LOGGER=ingestor.somewhere",
        "INGESTOR_PATH=/real-time/tweet-buzz",
        'INGESTOR_N_M_E=["a"]',
    ]
    assert text_of(stderr) == ""


def test_traceback_is_part_of_one_journal_entry(stderr: TextIO, journal: socket.socket) -> None:
    log_setup.configure("info", "auto", stderr)
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed")
    entry = journal.recv(65536)
    assert entry.startswith(b"MESSAGE\n")
    length = int.from_bytes(entry[8:16], "little")
    message = entry[16 : 16 + length].decode()
    assert message.startswith("failed")
    assert message.endswith("ValueError: bad")
    assert entry[16 + length :].startswith(b"\nPRIORITY=3\n")


def test_line_goes_to_stderr_without_a_journal(stderr: TextIO) -> None:
    log_setup.configure("info", "auto", stderr)
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.stdlib.get_logger("ingestor.elsewhere").exception("failed")
    text = text_of(stderr)
    assert "failed" in text
    assert text.endswith("    ValueError: bad\n")


def test_entry_too_long_for_the_journal_goes_to_stderr(stderr: TextIO, journal: socket.socket) -> None:
    log_setup.configure("info", "auto", stderr)
    log.info("long", extra={"many": ["A" * 4000] * 500})
    assert "long" in text_of(stderr)


def test_other_stream_is_not_the_journal(stderr: TextIO, tmp_path: Path) -> None:
    with (tmp_path / "elsewhere").open("w") as other:
        assert journald.is_journal_stream(stderr, os.environ)
        assert not journald.is_journal_stream(other, os.environ)
