"""Render log events as text. Mask secrets, and make harmless what outsiders wrote.

Outsiders' text cannot start a line of its own, move the cursor or reverse the writing direction.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ingestor.core.redaction import MASK, redactor

MAX_CHARACTERS = 4096  # of one value; tracebacks are not cut
TRACEBACK_FIELDS = frozenset({"exception", "stack"})

_SECRET_FIELDS = frozenset({"token", "api_key", "password", "authorization"})


def sanitize_event(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Sanitize every field of an event. A processor for structlog.

    It runs before rendering, because in a finished JSON line a mask could swallow the quote that ends a value.
    """
    return {
        printable(_scrubbed(key)): redactor.scrub(str(value)) if key in TRACEBACK_FIELDS else _masked(key, value)
        for key, value in event.items()
    }


def sanitize(value: object) -> object:
    """Return ``value`` as JSON data. Every text in it is scrubbed of secrets and cut to ``MAX_CHARACTERS``."""
    match value:
        case None | bool() | int():
            return value
        case Mapping():
            return {_scrubbed(key): _masked(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [sanitize(item) for item in value]
        case _:
            return _truncated(_scrubbed(value))


def printable(text: str) -> str:
    """Return ``text`` on one line: newlines, control characters, ANSI and bidirectional overrides are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def console_renderer(*, colors: bool) -> Processor:
    """Return a processor that renders an event as one line of text, followed by its traceback."""
    # repr for every value: it quotes, and escapes what is not printable.
    render = structlog.dev.ConsoleRenderer(
        colors=colors, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
    )

    def render_console(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return render(logger, method, {key: _console_value(key, value) for key, value in event.items()})

    return render_console


def _console_value(key: str, value: object) -> object:
    if key in {"event", "logger"}:
        return printable(str(value))
    if key in TRACEBACK_FIELDS:
        # Indented, so that a newline in an error's message cannot look like another log line.
        return "\n".join("    " + printable(line) for line in str(value).split("\n"))
    return value


def _masked(key: str, value: object) -> object:
    return MASK if key.lower() in _SECRET_FIELDS else sanitize(value)


def _scrubbed(value: object) -> str:
    try:
        return redactor.scrub(str(value))
    except Exception:  # __str__ of a foreign class may raise anything
        return f"<unprintable {type(value).__name__}>"


def _truncated(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}… ({len(text)} characters)"
