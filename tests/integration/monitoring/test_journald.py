from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from ingestor.monitoring import log_setup

log = logging.getLogger("ingestor.somewhere")


@pytest.fixture
def stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A stream of which the environment says that it is the journal's."""
    with (tmp_path / "stderr").open("w+", encoding="utf-8") as stream:
        stat = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        monkeypatch.setattr(log_setup, "JOURNAL", tmp_path / "journal")
        yield stream


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """The receiving end, as journald opens it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "journal"))
        channel.settimeout(5)
        yield channel


def written(stream: TextIO) -> str:
    for handler in logging.getLogger().handlers:
        handler.flush()
    return Path(stream.name).read_text(encoding="utf-8")


def test_the_journal_gets_fields(stderr: TextIO, journal: socket.socket) -> None:
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
    assert written(stderr) == ""


def test_a_traceback_is_one_entry_of_the_journal(stderr: TextIO, journal: socket.socket) -> None:
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


def test_without_a_journal_the_line_goes_to_stderr(stderr: TextIO) -> None:
    log_setup.configure("info", "auto", stderr)
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.stdlib.get_logger("ingestor.elsewhere").exception("failed")
    text = written(stderr)
    assert "failed" in text
    assert text.endswith("    ValueError: bad\n")


def test_an_entry_too_long_for_the_journal_goes_to_stderr(stderr: TextIO, journal: socket.socket) -> None:
    log_setup.configure("info", "auto", stderr)
    log.info("long", extra={"many": ["A" * 4000] * 500})
    assert "long" in written(stderr)


def test_another_stream_is_not_the_journal(stderr: TextIO, tmp_path: Path) -> None:
    with (tmp_path / "elsewhere").open("w") as other:
        assert log_setup.is_journal_stream(stderr, os.environ)
        assert not log_setup.is_journal_stream(other, os.environ)
