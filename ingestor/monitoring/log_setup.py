"""Set up logging: text for a terminal, fields for the journal, JSON for everything else.

Every record of the process passes the same formatter (``log_format``), those of libraries and tracebacks included.
Logging never waits for a reader (``nonblocking_stream``). Repeated warnings are counted, not logged (``log_dedup``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor

from ingestor.core.entries import Fact
from ingestor.monitoring import journald
from ingestor.monitoring.fact_messages import message_of
from ingestor.monitoring.log_dedup import DuplicateFilter
from ingestor.monitoring.log_format import TRACEBACK_FIELDS, console_renderer, sanitize_event
from ingestor.monitoring.nonblocking_stream import NonBlockingWriter
from ingestor.monitoring.status import severity

Format = Literal["auto", "console", "json"]
ResolvedFormat = Literal["console", "json", "journal"]

# Fields that a log line has anyway: a field of a fact with such a name gets a prefix.
_RESERVED_FIELDS = frozenset(
    {"event", "kind", "level", "logger", "timestamp", "exc_info", "stack_info", *TRACEBACK_FIELDS}
)

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

    Unless ``level`` is ``debug``, libraries log from ``warning`` up.
    """
    stream = stream or sys.stderr
    resolved = resolve_format(format, terminal=stream.isatty(), journal=journald.is_journal_stream(stream, os.environ))
    colors = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    _replace_handler(_make_handler(resolved, stream, colors=colors))
    _set_levels(logging.getLevelNamesMapping()[level.upper()])
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*_PREPARE, structlog.stdlib.PositionalArgumentsFormatter(), ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def resolve_format(format: Format, *, terminal: bool, journal: bool) -> ResolvedFormat:
    """Return the format that was configured or, for ``auto``, the one that suits the destination."""
    if format != "auto":
        return format
    if terminal:
        return "console"
    return "journal" if journal else "json"


def log_fact(fact: Fact) -> None:
    """Log one line for a fact. If it concerns many subscriptions, the line has their number and the first of them."""
    fields = {f"fact_{key}" if key in _RESERVED_FIELDS else key: value for key, value in fact.detail.items()}
    if fact.others:
        fields.pop("reason", None)  # it applies to the subscriptions that the fact does not name
    elif fact.state:
        fields["state"] = fact.state
    if fact.subscriptions and not fact.others:
        fields["subscriptions"] = len(fact.subscriptions)
        fields.setdefault("example", " ".join(fact.subscriptions[0]))
    log = getattr(structlog.stdlib.get_logger("ingestor"), severity(fact))
    log(message_of(fact), kind=fact.kind, **fields)


def loop_error_handler(count: Callable[[], None]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return a handler for ``loop.set_exception_handler`` that logs errors no task caught, and calls ``count``."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        count()
        task = context.get("task") or context.get("future")
        extra = {"in_task": task.get_name()} if isinstance(task, asyncio.Task) else {}
        logging.getLogger("ingestor").error("%s", context["message"], exc_info=context.get("exception"), extra=extra)

    return handle


def log_uncaught_errors() -> None:
    """Log errors that end the program or a thread. The interpreter would print them with secrets in them."""
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _replace_handler(handler: logging.Handler) -> None:
    root = logging.getLogger()
    for old in [existing for existing in root.handlers if isinstance(existing, _DedupHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(_DedupHandler(handler))


def _set_levels(level: int) -> None:
    logging.getLogger().setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    logging.getLogger("ingestor").setLevel(level)
    # At debug, SQLAlchemy logs every statement with its rows, which would slow the writer to a crawl.
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)


def _make_handler(format: ResolvedFormat, stream: TextIO, *, colors: bool) -> logging.Handler:
    handler = _StreamHandler(stream)
    if format == "json":
        handler.setFormatter(_formatter(structlog.processors.JSONRenderer(sort_keys=False)))
        return handler
    handler.setFormatter(_formatter(console_renderer(colors=colors and format == "console")))
    if format == "console":
        return handler
    journal = journald.JournaldHandler(journald.SOCKET_PATH, fallback=handler)
    journal.setFormatter(_formatter(journald.render_fields))
    return journal


def _formatter(render: Processor) -> logging.Formatter:
    return ProcessorFormatter(
        foreign_pre_chain=[*_PREPARE, structlog.stdlib.ExtraAdder(), _drop_formatted_fields],
        processors=[ProcessorFormatter.remove_processors_meta, sanitize_event, render],
    )


def _drop_formatted_fields(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Drop what other formatters left in the record: structlog takes it for fields of the event."""
    event.pop("message", None)
    event.pop("asctime", None)
    return event


class _DedupHandler(logging.Handler):
    """Passes records on to another handler, without the repetitions."""

    def __init__(self, inner: logging.Handler) -> None:
        super().__init__()
        self._inner, self._filter = inner, DuplicateFilter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            records = list(self._filter.admit(record, time.monotonic()))
        except Exception:  # the message cannot be formatted; the inner handler reports that
            records = [record]
        self._pass_on(records)

    def flush(self) -> None:
        self._inner.flush()

    def close(self) -> None:
        summaries = self._filter.flush()
        self._pass_on(summaries)
        if summaries:
            self._inner.flush()
        self._inner.close()
        super().close()

    def _pass_on(self, records: Iterable[logging.LogRecord]) -> None:
        for record in records:
            self._inner.handle(record)


class _StreamHandler(logging.Handler):
    """Formats a record at once, with the context and the secrets of that moment. Another thread writes it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._writer = NonBlockingWriter(stream, self._missing_notice)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        # The inherited method prints the message, its arguments and a traceback with secrets in them.
        error = sys.exc_info()[0]
        where = f"{record.name}:{record.lineno}: {error.__name__ if error else 'error'}"
        self._writer.write(f"a log line could not be formatted and was dropped ({where})\n")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _missing_notice(self, count: int) -> str:
        message = {"msg": "%d log lines were dropped here: the reader was too slow", "args": (count,)}
        level = {"name": "ingestor", "levelno": logging.WARNING, "levelname": "WARNING"}
        return self.format(logging.makeLogRecord({**message, **level})) + "\n"


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return  # a request to end, not an error
    logging.getLogger("ingestor").critical("uncaught error", exc_info=(kind, error or kind(), trace))
