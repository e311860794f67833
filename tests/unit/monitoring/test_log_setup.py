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
from ingestor.monitoring import log_setup
from ingestor.monitoring.nonblocking_stream import FLUSH_SECONDS

SECRET = 'a-"key"-that-nobody-may-read'
log = logging.getLogger("ingestor.somewhere")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging belongs to the whole process: leave it as it was found."""
    root, ours = logging.getLogger(), logging.getLogger("ingestor")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    redactor.add(SECRET)
    yield
    redactor.forget(SECRET)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
    structlog.reset_defaults()
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def without_pytests_handlers() -> None:
    """They raise where a line cannot be formatted, and leave their text on the record."""
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if type(each).__module__ == log_setup.__name__]


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
def as_json() -> io.StringIO:
    stream = io.StringIO()
    log_setup.configure("info", "json", stream)
    return stream


@pytest.fixture
def as_text() -> io.StringIO:
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
def test_the_form_suits_where_the_lines_go(
    format: log_setup.Format, terminal: bool, journal: bool, expected: str
) -> None:
    assert log_setup.resolve_format(format, terminal=terminal, journal=journal) == expected


def test_a_json_line_has_time_level_logger_and_fields(as_json: io.StringIO) -> None:
    without_pytests_handlers()
    log.info("%d frames", 3, extra={"feed": "tweet-buzz"})
    (line,) = lines_of(as_json)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "3 frames", "level": "info", "logger": "ingestor.somewhere", "feed": "tweet-buzz"}


def test_structlog_and_the_standard_library_share_the_form(as_json: io.StringIO) -> None:
    structlog.stdlib.get_logger("ingestor.elsewhere").warning("late", seconds=2)
    (line,) = lines_of(as_json)
    assert (line["event"], line["seconds"], line["logger"]) == ("late", 2, "ingestor.elsewhere")


def test_libraries_are_heard_from_warning_on(as_json: io.StringIO) -> None:
    logging.getLogger("apscheduler").info("added a job")
    logging.getLogger("apscheduler").warning("missed a job")
    assert [line["event"] for line in lines_of(as_json)] == ["missed a job"]


def test_at_debug_libraries_are_heard_too_but_not_their_statements() -> None:
    stream = io.StringIO()
    log_setup.configure("debug", "json", stream)
    logging.getLogger("apscheduler").debug("looking for jobs")
    logging.getLogger("sqlalchemy.engine").info("INSERT …")
    assert [line["event"] for line in lines_of(stream)] == ["looking for jobs"]


def test_configuring_again_replaces_and_does_not_double(as_json: io.StringIO) -> None:
    second = io.StringIO()
    log_setup.configure("warning", "json", second)
    log.info("quiet")
    log.warning("once")
    assert text_of(as_json) == ""
    assert [line["event"] for line in lines_of(second)] == ["once"]


def test_warnings_become_log_lines(as_json: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        log_setup.configure("info", "json", as_json)
        warnings.warn(f"old {SECRET}", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines_of(as_json)
    assert line["logger"] == "py.warnings"
    assert "UserWarning: old ***" in line["event"]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_secret_reaches_no_line_wherever_it_stands(format: log_setup.Format) -> None:
    stream = io.StringIO()
    log_setup.configure("debug", format, stream)
    without_pytests_handlers()
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


def test_what_is_called_a_secret_is_masked_even_if_nobody_told_us(as_json: io.StringIO) -> None:
    log.info("answer", extra={"body": {"token": "unheard-of"}, "password": "unheard-of"})
    (line,) = lines_of(as_json)
    assert (line["body"], line["password"]) == ({"token": "***"}, "***")


@pytest.mark.parametrize(
    ("hostile", "spelled"),
    [
        pytest.param("A\n2026-01-01 [error] forged", "A\\n2026-01-01", id="newline"),
        pytest.param("\x1b[31mred", "\\x1b[31mred", id="ANSI"),
        pytest.param("\u202egnorw", "\\u202egnorw", id="right to left"),
        pytest.param("\udc80", "\\udc80", id="lone surrogate"),
        pytest.param("\x00\x85\u2028", "\\x00\\x85\\u2028", id="controls"),
    ],
)
def test_hostile_text_is_spelled_out_on_a_terminal(as_text: io.StringIO, hostile: str, spelled: str) -> None:
    log.warning("refused %s", hostile, extra={"ticker": hostile, hostile: 1, "more": [hostile]})
    text = text_of(as_text)
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert text.count(spelled) == 4


def test_what_another_formatter_left_in_the_record_is_not_told(as_text: io.StringIO) -> None:
    record = log.makeRecord(log.name, logging.WARNING, "", 0, "refused", (), None)
    logging.Formatter("%(asctime)s %(message)s").format(record)
    log.handle(record)
    text = text_of(as_text)
    assert "refused" in text
    assert "message=" not in text
    assert "asctime=" not in text


def test_an_errors_message_cannot_begin_a_line_of_its_own(as_text: io.StringIO) -> None:
    try:
        raise ValueError("bad\n2026-01-01 [error] \x1b[2Jforged")
    except ValueError:
        log.exception("failed")
    first, *rest = text_of(as_text).splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in text_of(as_text)


def test_a_long_value_is_cut_and_says_so(as_json: io.StringIO) -> None:
    log.info("long", extra={"ticker": "A" * 10_000})
    (line,) = lines_of(as_json)
    assert line["ticker"] == "A" * log_setup.LONGEST + "… (10000 characters)"


def test_a_line_that_cannot_be_written_says_where_it_came_from(as_text: io.StringIO) -> None:
    without_pytests_handlers()
    log.info("%d", SECRET)
    assert text_of(as_text).startswith("a log line could not be written (ingestor.somewhere:")
    assert text_of(as_text).endswith(": TypeError)\n")


def test_a_closed_stream_stops_nobody(as_text: io.StringIO) -> None:
    as_text.close()
    log.info("nobody hears this")
    began = time.monotonic()
    logging.getLogger().handlers[-1].flush()
    assert time.monotonic() - began < FLUSH_SECONDS, "the thread that writes goes on"


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_a_terminal_has_colors_unless_no_color_is_set(
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
        pytest.param(Fact("connected", 0, {"event": "res"}), "info", id="a detail named like our own key"),
        pytest.param(Fact("disconnected", 0, {"reason": "gone"}, "disconnected"), "warning", id="bad news"),
        pytest.param(Fact("spool_full", 0, {}, "spool_full"), "error", id="alarm"),
    ],
)
def test_a_fact_is_one_line_at_its_severity(as_json: io.StringIO, fact: Fact, level: str) -> None:
    log_setup.log_fact(fact)
    (line,) = lines_of(as_json)
    assert (line["event"], line["level"]) == (fact.kind.replace("_", " "), level)


def test_a_fact_about_many_subscriptions_counts_them(as_json: io.StringIO) -> None:
    keys = tuple(("/real-time/tweet-buzz", "get", f'{{"ticker":"{n}"}}') for n in range(1000))
    log_setup.log_fact(Fact("subscribed", 0, {}, "live", keys))
    (line,) = lines_of(as_json)
    assert (line["subscriptions"], line["state"]) == (1000, "live")
    assert line["first"] == '/real-time/tweet-buzz get {"ticker":"0"}'


def test_a_fact_about_all_others_does_not_show_their_reason_as_its_own(as_json: io.StringIO) -> None:
    key = ("/real-time/tweet-buzz", "get", "{}")
    log_setup.log_fact(Fact("started", 0, {"version": "1", "reason": "not wanted"}, "stopped", (key,), others=True))
    (line,) = lines_of(as_json)
    assert line.keys() == {"event", "level", "logger", "timestamp", "version"}


async def test_an_error_that_no_task_caught_is_logged_and_counted(as_json: io.StringIO) -> None:
    counted: list[None] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_setup.loop_error_handler(lambda: counted.append(None)))
    loop.call_soon(int, SECRET)
    await asyncio.sleep(0)
    (line,) = lines_of(as_json)
    assert line["level"] == "error"
    assert "ValueError: invalid literal" in line["exception"]
    assert SECRET not in text_of(as_json)
    assert len(counted) == 1


def test_an_error_that_ends_a_thread_passes_the_formatter(as_json: io.StringIO) -> None:
    log_setup.log_uncaught_errors()
    thread = threading.Thread(target=int, args=(SECRET,))
    thread.start()
    thread.join()
    (line,) = lines_of(as_json)
    assert line["level"] == "critical"
    assert "ValueError" in line["exception"]
    assert SECRET not in text_of(as_json)


def test_a_keyboard_interrupt_is_no_error(as_json: io.StringIO) -> None:
    log_setup.log_uncaught_errors()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert text_of(as_json) == ""


def test_a_value_with_a_newline_goes_to_the_journal_with_its_length() -> None:
    assert log_setup.encode_datagram({"MESSAGE": "hello", "TRACE": "a\nb"}) == (
        b"MESSAGE=hello\nTRACE\n\x03\x00\x00\x00\x00\x00\x00\x00a\nb\n"
    )


def test_what_repeats_is_a_line_and_at_the_end_a_count(as_json: io.StringIO) -> None:
    without_pytests_handlers()
    for number in range(5):
        log.warning("%d is too many", number)
        structlog.stdlib.get_logger("ingestor").warning("paused", reason="the spool is behind")
    (handler,) = logging.getLogger().handlers
    assert [line["event"] for line in lines_of(as_json)] == ["0 is too many", "paused"]
    handler.close()
    assert [(line["event"], line["repeated"]) for line in map(json.loads, as_json.getvalue().splitlines()[2:])] == [
        ("4 is too many", 4),
        ("paused", 4),
    ]


def test_a_line_that_cannot_be_read_does_not_hold_up_the_next(as_json: io.StringIO) -> None:
    without_pytests_handlers()
    log.warning("%d", "no number")
    log.warning("after it")
    text = text_of(as_json)
    assert "a log line could not be written" in text
    assert "after it" in text
