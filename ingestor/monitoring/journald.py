"""Send log records to systemd's journal with their fields, in its native protocol."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from structlog.typing import EventDict, WrappedLogger

from ingestor.monitoring.log_format import TRACEBACK_FIELDS, console_renderer

SOCKET_PATH = Path("/run/systemd/journal/socket")

_PRIORITIES = {"critical": "2", "error": "3", "warning": "4", "info": "6", "debug": "7"}  # of syslog(3)
_render_console = console_renderer(colors=False)


class JournaldHandler(logging.Handler):
    """Sends records, which its formatter renders by ``render_fields``, to the journal's socket.

    A record that the socket does not accept (too long, no journal) goes to ``fallback``.
    """

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


def is_journal_stream(stream: TextIO, env: Mapping[str, str]) -> bool:
    """Return whether ``stream`` is connected to the journal.

    The variable ``JOURNAL_STREAM`` holds the device and the inode of the stream that is (systemd.exec(5)).
    """
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file behind it, or closed
        return False
    return env.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def render_fields(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """Render an event as a JSON object of journal fields. A processor for structlog."""
    fields = {"PRIORITY": _PRIORITIES.get(event.pop("level", ""), "5"), "SYSLOG_IDENTIFIER": "ingestor"}
    event.pop("timestamp", None)  # the journal has its own
    message = _render_console(logger, method, dict(event))
    for key, value in event.items():
        if key not in {"event", *TRACEBACK_FIELDS}:
            fields[_field_name(key)] = value if isinstance(value, str) else json.dumps(value)
    return json.dumps({"MESSAGE": message, **fields})


def encode_datagram(fields: Mapping[str, str]) -> bytes:
    """Encode ``fields`` in the journal's native protocol: a value with a newline is preceded by its length."""
    parts = []
    for name, value in fields.items():
        raw = value.encode(errors="backslashreplace")
        if b"\n" in raw:
            parts.append(name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n")
        else:
            parts.append(name.encode() + b"=" + raw + b"\n")
    return b"".join(parts)


def _field_name(key: str) -> str:
    # Upper-case ASCII letters, digits and _, at most 64 (systemd.journal-fields(7)); the journal drops other fields.
    name = "".join(char if char.isascii() and char.isalnum() else "_" for char in key)
    return f"INGESTOR_{name.upper()}"[:64]
