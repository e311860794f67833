"""Log lines: text for people on a terminal, fields for the journal, JSON for everything else.

All of them pass one formatter, those of libraries and their tracebacks too. There secrets are masked, and what
outsiders wrote is made harmless: it cannot begin a line of its own, move the cursor or turn the text round. Who logs
never waits for who reads: see ``outlet``; and what repeats is counted: see ``repeats``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from ingestor.core.entries import Fact
from ingestor.core.redaction import MASK, redactor
from ingestor.monitoring.log_dedup import DuplicateFilter
from ingestor.monitoring.nonblocking_stream import NonBlockingWriter
from ingestor.monitoring.status import severity

Format = Literal["auto", "console", "json"]
Form = Literal["console", "json", "journal"]

JOURNAL = Path("/run/systemd/journal/socket")
LONGEST = 4096  # characters of one value; tracebacks are spared

_SECRET_KEYS = frozenset({"token", "api_key", "password", "authorization"})
_TRACEBACKS = frozenset({"exception", "stack"})
_TAKEN = frozenset({"event", "level", "logger", "timestamp", "exc_info", "stack_info", *_TRACEBACKS})
_PRIORITIES = {"critical": "2", "error": "3", "warning": "4", "info": "6", "debug": "7"}  # of syslog(3)

_PREPARE: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,
)


def configure(level: str, format: Format = "auto", stream: TextIO | None = None) -> None:
    """Send every log record and warning of this process to ``stream`` (default: stderr). May be called again.

    Below ``debug``, libraries are heard from ``warning`` on.
    """
    stream = stream or sys.stderr
    form = resolve_format(format, terminal=stream.isatty(), journal=is_journal_stream(stream, os.environ))
    _replace_handler(_handler(form, stream, colors=stream.isatty() and _wants_colors(os.environ)))
    _set_levels(logging.getLevelNamesMapping()[level.upper()])
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            *_PREPARE,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def resolve_format(format: Format, *, terminal: bool, journal: bool) -> Form:
    """What the lines look like: as told, or as suits where they go."""
    if format != "auto":
        return format
    if terminal:
        return "console"
    return "journal" if journal else "json"


def is_journal_stream(stream: TextIO, env: Mapping[str, str]) -> bool:
    """Is ``stream`` connected to the journal? ``JOURNAL_STREAM`` is its device and inode (systemd.exec(5))."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file behind it, or closed
        return False
    return env.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def log_fact(fact: Fact) -> None:
    """One line for one fact. A fact about many subscriptions says how many, not which."""
    fields = {f"fact_{key}" if key in _TAKEN else key: value for key, value in fact.detail.items()}
    if fact.others:
        fields.pop("reason", None)  # is that of subscriptions which it does not name
    elif fact.state:
        fields["state"] = fact.state
    if fact.subscriptions and not fact.others:
        fields["subscriptions"] = len(fact.subscriptions)
        fields.setdefault("first", " ".join(fact.subscriptions[0]))
    getattr(structlog.stdlib.get_logger("ingestor"), severity(fact))(fact.kind.replace("_", " "), **fields)


def loop_error_handler(count: Callable[[], None]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """For ``loop.set_exception_handler``: an error that no task caught is logged, and counted by ``count``."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        count()
        task = context.get("task") or context.get("future")
        extra = {"in_task": task.get_name()} if isinstance(task, asyncio.Task) else {}
        logging.getLogger("ingestor").error("%s", context["message"], exc_info=context.get("exception"), extra=extra)

    return handle


def log_uncaught_errors() -> None:
    """Let errors that end the program or a thread pass the formatter: the interpreter would print them unmasked."""
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def to_plain(value: object) -> object:
    """``value`` as JSON has it, every text in it scrubbed of secrets and cut to ``LONGEST`` characters."""
    match value:
        case None | bool() | int():
            return value
        case Mapping():
            return {_text(key): _value(str(key), inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_plain(inner) for inner in value]
        case _:
            return _cut(_text(value))


def printable(text: str) -> str:
    """``text`` on one line: newlines, control characters, ANSI and what turns the writing direction are spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def encode_datagram(fields: Mapping[str, str]) -> bytes:
    """``fields`` in the journal's native protocol: a value with a newline has its length before it."""
    parts = []
    for name, value in fields.items():
        raw = value.encode(errors="backslashreplace")
        if b"\n" in raw:
            parts.append(name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n")
        else:
            parts.append(name.encode() + b"=" + raw + b"\n")
    return b"".join(parts)


def _replace_handler(handler: logging.Handler) -> None:
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _DedupHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(_DedupHandler(handler))


def _set_levels(level: int) -> None:
    logging.getLogger().setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    logging.getLogger("ingestor").setLevel(level)
    # At debug it would spell out every statement with its rows: the writer would do little else.
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)


def _handler(form: Form, stream: TextIO, *, colors: bool) -> logging.Handler:
    lines = _StreamHandler(stream)
    if form == "journal":
        lines.setFormatter(_formatter(_console(colors=False)))
        journal = _JournaldHandler(JOURNAL, fallback=lines)
        journal.setFormatter(_formatter(_journal_fields))
        return journal
    lines.setFormatter(
        _formatter(_console(colors=colors) if form == "console" else structlog.processors.JSONRenderer(sort_keys=False))
    )
    return lines


def _formatter(render: Processor) -> logging.Formatter:
    return ProcessorFormatter(
        foreign_pre_chain=[*_PREPARE, structlog.stdlib.ExtraAdder(), _own],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            _clean,
            render,
        ],
    )


def _own(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Without what other formatters have left in the record: to structlog it looks like fields of the event."""
    event.pop("message", None)
    event.pop("asctime", None)
    return event


class _DedupHandler(logging.Handler):
    """Hands on what is no repetition."""

    def __init__(self, told: logging.Handler) -> None:
        super().__init__()
        self._told, self._repeats = told, DuplicateFilter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            news = list(self._repeats.admit(record, time.monotonic()))
        except Exception:  # it cannot be read, and the next one says so
            news = [record]
        for one in news:
            self._told.handle(one)

    def flush(self) -> None:
        self._told.flush()

    def close(self) -> None:
        rest = self._repeats.flush()
        for one in rest:
            self._told.handle(one)
        if rest:
            self._told.flush()
        self._told.close()
        super().close()


class _StreamHandler(logging.Handler):
    """Formats where the record was made, with that moment's context and values; only the writing is for later."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._outlet = NonBlockingWriter(stream, self._missing)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._outlet.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        # The inherited one prints the message, its arguments and a traceback as they are, secrets and all.
        error = sys.exc_info()[0]
        what = f"{record.name}:{record.lineno}: {error.__name__ if error else 'error'}"
        self._outlet.write(f"a log line could not be written ({what})\n")

    def flush(self) -> None:
        self._outlet.flush()

    def close(self) -> None:
        self._outlet.close()
        super().close()

    def _missing(self, count: int) -> str:
        said = {"msg": "%d log lines are missing here: nobody read them", "args": (count,), "name": "ingestor"}
        level = {"levelno": logging.WARNING, "levelname": "WARNING"}
        return self.format(logging.makeLogRecord({**said, **level})) + "\n"


class _JournaldHandler(logging.Handler):
    """Sends to the journal's own socket; what that does not take (too long, no journal) goes to ``fallback``."""

    def __init__(self, path: Path, fallback: logging.Handler) -> None:
        super().__init__()
        self._path, self._fallback = str(path), fallback
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendto(encode_datagram(json.loads(self.format(record))), self._path)
        except OSError:
            self._fallback.handle(record)
        except Exception:
            self._fallback.handleError(record)

    def flush(self) -> None:
        self._fallback.flush()

    def close(self) -> None:
        self._socket.close()
        self._fallback.close()
        super().close()


def _clean(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    # Here and not on the finished line: in JSON a mask could swallow the quote that ends a value.
    return {
        printable(_text(key)): redactor.scrub(str(value)) if key in _TRACEBACKS else _value(key, value)
        for key, value in event.items()
    }


def _value(key: str, value: object) -> object:
    return MASK if key.lower() in _SECRET_KEYS else to_plain(value)


def _text(value: object) -> str:
    try:
        return redactor.scrub(str(value))
    except Exception:  # somebody else's __str__
        return f"<unprintable {type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


def _console(*, colors: bool) -> Processor:
    # repr for every value: it quotes, and spells out what is not printable.
    render = structlog.dev.ConsoleRenderer(
        colors=colors, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
    )

    def console(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return render(logger, method, _one_line(event))

    return console


def _one_line(event: EventDict) -> EventDict:
    def shown(key: str, value: object) -> object:
        if key in {"event", "logger"}:
            return printable(str(value))
        if key in _TRACEBACKS:
            # Indented, so that a newline in an error's message cannot look like another log line.
            return "\n".join("    " + printable(line) for line in str(value).split("\n"))
        return value

    return {key: shown(key, value) for key, value in event.items()}


def _journal_fields(logger: WrappedLogger, method: str, event: EventDict) -> str:
    stamps = {key: event.pop(key, "") for key in ("timestamp", "level")}  # the journal has its own
    fields = {
        "MESSAGE": _console(colors=False)(logger, method, dict(event)),
        "PRIORITY": _PRIORITIES.get(stamps["level"], "5"),
        "SYSLOG_IDENTIFIER": "ingestor",
    }
    for key, value in event.items():
        if key not in {"event", *_TRACEBACKS}:
            fields[_field_name(key)] = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(fields)


def _field_name(key: str) -> str:
    # Upper-case ASCII letters, digits and _, at most 64 (systemd.journal-fields(7)); the rest would drop the field.
    name = "".join(char if char.isascii() and char.isalnum() else "_" for char in key)
    return f"INGESTOR_{name.upper()}"[:64]


def _wants_colors(env: Mapping[str, str]) -> bool:
    return not env.get("NO_COLOR") and env.get("TERM") != "dumb"


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return  # somebody's wish, not an error
    logging.getLogger("ingestor").critical("uncaught error", exc_info=(kind, error or kind(), trace))
