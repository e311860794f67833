from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from ingestor.core.entries import Fact
from ingestor.core.redaction import redactor
from ingestor.monitoring import journald, log_format, log_setup
from ingestor.monitoring.fact_messages import message_of
from ingestor.monitoring.nonblocking_stream import FLUSH_SECONDS
from tests.support.logging_state import preserved_logging

SECRET = 'a-"key"-to-mask'
log = logging.getLogger("ingestor.somewhere")


@pytest.fixture(autouse=True)
def _preserve_logging() -> Iterator[None]:
    redactor.add(SECRET)
    with preserved_logging():
        yield
    redactor.remove(SECRET)


def remove_pytest_handlers() -> None:
    """Remove pytest's handlers: they raise if a record cannot be formatted, and leave their text on the record."""
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__ == log_setup.__name__]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def text_of(stream: io.StringIO) -> str:
    for handler in logging.getLogger().handlers:
        handler.flush()
    return stream.getvalue()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(stream).splitlines()]


@pytest.fixture
def json_stream() -> io.StringIO:
    stream = io.StringIO()
    log_setup.configure("info", "json", stream)
    return stream


@pytest.fixture
def text_stream() -> io.StringIO:
    stream = io.StringIO()
    log_setup.configure("info", "console", stream)
    return stream


@pytest.mark.parametrize(
    ("format", "terminal", "journal", "expected"),
    [
        ("auto", True, False, "console"),
        ("auto", False, False, "json"),
        ("auto", False, True, "journal"),
        ("json", True, False, "json"),
        ("console", False, True, "console"),
    ],
)
def test_auto_format_suits_the_destination(
    format: log_setup.Format, terminal: bool, journal: bool, expected: str
) -> None:
    assert log_setup.resolve_format(format, terminal=terminal, journal=journal) == expected


def test_json_line_has_time_level_logger_and_fields(json_stream: io.StringIO) -> None:
    remove_pytest_handlers()
    log.info("%d frames", 3, extra={"feed": "tweet-buzz"})
    (line,) = lines_of(json_stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "3 frames", "level": "info", "logger": "ingestor.somewhere", "feed": "tweet-buzz"}


def test_structlog_and_standard_library_share_the_format(json_stream: io.StringIO) -> None:
    structlog.stdlib.get_logger("ingestor.elsewhere").warning("late", seconds=2)
    (line,) = lines_of(json_stream)
    assert (line["event"], line["seconds"], line["logger"]) == ("late", 2, "ingestor.elsewhere")


def test_libraries_log_from_warning_up(json_stream: io.StringIO) -> None:
    logging.getLogger("apscheduler").info("added a job")
    logging.getLogger("apscheduler").warning("missed a job")
    assert [line["event"] for line in lines_of(json_stream)] == ["missed a job"]


def test_debug_logs_libraries_but_no_sql_statements() -> None:
    stream = io.StringIO()
    log_setup.configure("debug", "json", stream)
    logging.getLogger("apscheduler").debug("looking for jobs")
    logging.getLogger("sqlalchemy.engine").info("INSERT …")
    assert [line["event"] for line in lines_of(stream)] == ["looking for jobs"]


def test_configuring_again_replaces_the_handler(json_stream: io.StringIO) -> None:
    second = io.StringIO()
    log_setup.configure("warning", "json", second)
    log.info("quiet")
    log.warning("once")
    assert text_of(json_stream) == ""
    assert [line["event"] for line in lines_of(second)] == ["once"]


def test_python_warnings_become_log_lines(json_stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        log_setup.configure("info", "json", json_stream)
        warnings.warn(f"old {SECRET}", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines_of(json_stream)
    assert line["logger"] == "py.warnings"
    assert "UserWarning: old ***" in line["event"]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize("format", ["json", "console"])
def test_secret_is_masked_wherever_it_occurs(format: log_setup.Format) -> None:
    stream = io.StringIO()
    log_setup.configure("debug", format, stream)
    remove_pytest_handlers()
    other = structlog.stdlib.get_logger("lib")
    log.info("key %s", SECRET)
    log.info("nested", extra={"detail": {"list": [1, (SECRET,)], SECRET: 1}, "error": ValueError(SECRET)})
    log.info("%d", SECRET)
    log.info("odd", extra={"odd": Unprintable()})
    logging.getLogger("lib").warning("lib %s", SECRET)
    try:
        raise ValueError(f"secret {SECRET}")
    except ValueError:
        log.exception("failed")
        other.exception("failed", stack_info=True)
    assert SECRET not in text_of(stream)
    assert json.dumps(SECRET)[1:-1] not in text_of(stream)
    assert text_of(stream).count("ValueError: secret ***") == 2


def test_field_named_like_a_secret_is_masked(json_stream: io.StringIO) -> None:
    log.info("answer", extra={"body": {"token": "not registered"}, "password": "not registered"})
    (line,) = lines_of(json_stream)
    assert (line["body"], line["password"]) == ({"token": "***"}, "***")


@pytest.mark.parametrize(
    ("hostile", "escaped"),
    [
        pytest.param("A\n2026-01-01 [error] forged", "A\\n2026-01-01", id="newline"),
        pytest.param("\x1b[31mred", "\\x1b[31mred", id="ANSI"),
        pytest.param("\u202egnorw", "\\u202egnorw", id="right to left"),
        pytest.param("\udc80", "\\udc80", id="lone surrogate"),
        pytest.param("\x00\x85\u2028", "\\x00\\x85\\u2028", id="controls"),
    ],
)
def test_hostile_text_is_escaped_on_a_terminal(text_stream: io.StringIO, hostile: str, escaped: str) -> None:
    log.warning("refused %s", hostile, extra={"ticker": hostile, hostile: 1, "more": [hostile]})
    text = text_of(text_stream)
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert text.count(escaped) == 4


def test_text_of_another_formatter_is_not_logged(text_stream: io.StringIO) -> None:
    record = log.makeRecord(log.name, logging.WARNING, "", 0, "refused", (), None)
    logging.Formatter("%(asctime)s %(message)s").format(record)
    log.handle(record)
    text = text_of(text_stream)
    assert "refused" in text
    assert "message=" not in text
    assert "asctime=" not in text


def test_error_message_cannot_start_a_line_of_its_own(text_stream: io.StringIO) -> None:
    try:
        raise ValueError("bad\n2026-01-01 [error] \x1b[2Jforged")
    except ValueError:
        log.exception("failed")
    first, *traceback = text_of(text_stream).splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") for line in traceback)
    assert "\x1b" not in text_of(text_stream)


def test_long_value_is_cut_with_its_length(json_stream: io.StringIO) -> None:
    log.info("long", extra={"ticker": "A" * 10_000})
    (line,) = lines_of(json_stream)
    assert line["ticker"] == "A" * log_format.MAX_CHARACTERS + "… (10000 characters)"


def test_line_that_cannot_be_formatted_names_its_origin(text_stream: io.StringIO) -> None:
    remove_pytest_handlers()
    log.info("%d", SECRET)
    assert text_of(text_stream).startswith("a log line could not be formatted and was dropped (ingestor.somewhere:")
    assert text_of(text_stream).endswith(": TypeError)\n")


def test_closed_stream_does_not_block_logging(text_stream: io.StringIO) -> None:
    text_stream.close()
    log.info("lost")
    began = time.monotonic()
    logging.getLogger().handlers[-1].flush()
    assert time.monotonic() - began < FLUSH_SECONDS, "the writing thread must go on"


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_terminal_has_colors_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, no_color: str, colored: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    log_setup.configure("info", "auto", stream)
    log.info("hello")
    assert ("\x1b[" in text_of(stream)) is colored


@pytest.mark.parametrize(
    ("fact", "level"),
    [
        pytest.param(Fact("connected", 0, {"event": "res", "kind": "k"}), "info", id="reserved detail names"),
        pytest.param(Fact("disconnected", 0, {"reason": "gone"}, "disconnected"), "warning", id="warning"),
        pytest.param(Fact("spool_full", 0, {}, "spool_full"), "error", id="error"),
        pytest.param(Fact("of_tomorrow", 0, {}), "info", id="kind without a message"),
    ],
)
def test_fact_is_one_line_at_its_severity(json_stream: io.StringIO, fact: Fact, level: str) -> None:
    log_setup.log_fact(fact)
    (line,) = lines_of(json_stream)
    assert (line["event"], line["kind"], line["level"]) == (message_of(fact), fact.kind, level)


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        pytest.param(Fact("of_tomorrow", 0, {}), "of tomorrow", id="without a message"),
        pytest.param(Fact("disconnected", 0, {"cause": "closed"}, "disconnected"), "lost, reconnecting", id="lost"),
        pytest.param(Fact("disconnected", 0, {"cause": "renewed"}, "disconnected"), "to replace it", id="replaced"),
        pytest.param(Fact("disconnected", 0, {"cause": "spool_full"}, "spool_full"), "spool is full", id="no space"),
        pytest.param(Fact("silent", 0, {}, "silent"), "requesting it again", id="silent subscription"),
        pytest.param(Fact("silent", 0, {}), "replacing it", id="silent connection"),
    ],
)
def test_message_of_fact_says_what_the_daemon_does(fact: Fact, words: str) -> None:
    assert words in message_of(fact)


def test_fact_about_many_subscriptions_has_their_number(json_stream: io.StringIO) -> None:
    keys = tuple(("/real-time/tweet-buzz", "get", f'{{"ticker":"{n}"}}') for n in range(1000))
    log_setup.log_fact(Fact("subscribed", 0, {}, "live", keys))
    (line,) = lines_of(json_stream)
    assert (line["subscriptions"], line["state"]) == (1000, "live")
    assert line["example"] == '/real-time/tweet-buzz get {"ticker":"0"}'


def test_fact_about_all_others_hides_their_reason(json_stream: io.StringIO) -> None:
    key = ("/real-time/tweet-buzz", "get", "{}")
    log_setup.log_fact(Fact("started", 0, {"version": "1", "reason": "not wanted"}, "stopped", (key,), others=True))
    (line,) = lines_of(json_stream)
    assert line.keys() == {"event", "kind", "level", "logger", "timestamp", "version"}


async def test_error_in_the_loop_is_logged_and_counted(json_stream: io.StringIO) -> None:
    counts: list[None] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_setup.loop_error_handler(lambda: counts.append(None)))
    loop.call_soon(int, SECRET)
    await asyncio.sleep(0)
    (line,) = lines_of(json_stream)
    assert line["level"] == "error"
    assert "ValueError: invalid literal" in line["exception"]
    assert SECRET not in text_of(json_stream)
    assert len(counts) == 1


def test_error_that_ends_a_thread_is_logged(json_stream: io.StringIO) -> None:
    log_setup.log_uncaught_errors()
    thread = threading.Thread(target=int, args=(SECRET,))
    thread.start()
    thread.join()
    (line,) = lines_of(json_stream)
    assert line["level"] == "critical"
    assert "ValueError" in line["exception"]
    assert SECRET not in text_of(json_stream)


def test_keyboard_interrupt_is_not_logged(json_stream: io.StringIO) -> None:
    log_setup.log_uncaught_errors()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert text_of(json_stream) == ""


def test_datagram_value_with_newline_has_its_length() -> None:
    assert journald.encode_datagram({"MESSAGE": "hello", "TRACE": "a\nb"}) == (
        b"MESSAGE=hello\nTRACE\n\x03\x00\x00\x00\x00\x00\x00\x00a\nb\n"
    )


def test_repetitions_are_counted_when_logging_ends(json_stream: io.StringIO) -> None:
    remove_pytest_handlers()
    for number in range(5):
        log.warning("%d is too many", number)
        structlog.stdlib.get_logger("ingestor").warning("paused", reason="the spool is behind")
    (handler,) = logging.getLogger().handlers
    assert [line["event"] for line in lines_of(json_stream)] == ["0 is too many", "paused"]
    handler.close()
    assert [(line["event"], line["repeated"]) for line in map(json.loads, json_stream.getvalue().splitlines()[2:])] == [
        ("4 is too many", 4),
        ("paused", 4),
    ]


def test_unformattable_line_does_not_stop_the_next(json_stream: io.StringIO) -> None:
    remove_pytest_handlers()
    log.warning("%d", "no number")
    log.warning("after it")
    text = text_of(json_stream)
    assert "a log line could not be formatted" in text
    assert "after it" in text
