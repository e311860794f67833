"""Standard streams that suit every terminal, pipe and disk: closed, full, or without a character that we print."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import select
import sys
from typing import Any

import typer

from ingestor.errors import FileWriteFailed

STDIN, STDOUT, STDERR = range(3)
_ENCODING_ERRORS = "ingestor.substitute"
# In one place, so that a picture and its legend have the same substitute.
_SUBSTITUTES = dict(zip("▁▂▃▄▅▆▇█·✓✗×→", "_,:-=+*#.+xx>", strict=True)) | {"…": "..."}


def open_standard_streams() -> None:
    """Make sys.stdin, stdout and stderr usable, whatever they are connected to. Call this before opening any file.

    A closed descriptor is occupied: the next file that is opened, such as the database, would get its number, and our
    output with it. A character that the encoding lacks becomes a substitute or an escape.
    """
    closed = [number for number in (STDIN, STDOUT, STDERR) if not _is_open(number)]
    for number in closed:
        # stdout for reading, so that a write still fails: the command must not seem to have printed its result.
        handle = os.open(os.devnull, os.O_WRONLY if number == STDERR else os.O_RDONLY)  # gets the lowest free number
        os.set_inheritable(handle, True)
    codecs.register_error(_ENCODING_ERRORS, _substitute)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(STDIN, closefd=False)))
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _open_text(_StandardOutput(STDOUT, "w", closefd=False), sys.stdout)
    elif isinstance(sys.stdout, io.TextIOWrapper):  # a test captures it
        sys.stdout.reconfigure(errors=_ENCODING_ERRORS)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _open_text(_StandardError(STDERR, "w", closefd=False), sys.stderr)


def discard_output() -> None:
    """Drop what was not printed yet. After an interrupt it is unknown whether it was: a flush could print it twice."""
    _discard(STDOUT)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open_text(raw: io.FileIO, before: io.TextIOBase | None) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding, _ENCODING_ERRORS, line_buffering=raw.isatty() or raw.fileno() == STDERR)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Replace what the encoding lacks: a symbol by another, the rest by escapes that are valid in JSON."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101
    missing = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(char) or json.dumps(char)[1:-1] for char in missing), error.end


class _StandardOutput(io.FileIO):
    """A write that fails ends the command: with 0 if the reader closed the pipe, else with 74 and the reason."""

    def write(self, data: Any, /) -> int:
        try:
            return _written(super().write(data), self)
        except OSError as error:
            _discard(STDOUT)
            if error.errno == errno.EPIPE:
                raise typer.Exit from None
            raise FileWriteFailed(f"stdout cannot be written: {os.strerror(error.errno or 0)}") from None


class _StandardError(io.FileIO):
    """What cannot be written is dropped, because there is no other place to report it."""

    def write(self, data: Any, /) -> int:
        try:
            return _written(super().write(data), self)
        except OSError:
            return memoryview(data).nbytes


def _written(count: int | None, stream: io.FileIO) -> int:
    """Return how many bytes were written. None: another process made the terminal non-blocking, and it is full."""
    if count is None:
        select.select((), (stream,), ())
    return count or 0


def _discard(number: int) -> None:
    """Let further writes go nowhere: the interpreter flushes the stream again when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
