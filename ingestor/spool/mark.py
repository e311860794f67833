"""What is known to be durable, in a file of its own: one damage does not take both this and the spool."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from ingestor.core.files import open_private
from ingestor.core.os_errors import EXHAUSTED

MARK = "mark"  # the file, in the folder of the spool
MARK_BYTES = 128  # within one sector, which a disk writes whole


class Mark(NamedTuple):
    """The last heartbeat of a run of the spool, as far as it is needed to notice that entries are gone."""

    run_id: str
    seq: int  # was durable
    at_us: int  # µs since the epoch; 0 before the first heartbeat


def read_mark(path: Path) -> Mark | None:
    """Return the mark, None if there is none that can be read. Raises OSError, PermissionDenied."""
    try:
        handle = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        content = os.pread(handle, MARK_BYTES, 0)
    finally:
        os.close(handle)
    try:
        text, crc = content.decode("ascii").rsplit(maxsplit=1)
        run_id, seq, at_us = text.split()
        return Mark(run_id, int(seq), int(at_us)) if int(crc, 16) == zlib.crc32(text.encode()) else None
    except ValueError:
        return None


def write_mark(path: Path, mark: Mark) -> None:
    """Overwrite the mark in place, and sync it. Without space or a descriptor the old one remains.

    Raises OSError, PermissionDenied.
    """
    text = f"{mark.run_id} {mark.seq} {mark.at_us}"
    content = f"{text} {zlib.crc32(text.encode()):08x}".ljust(MARK_BYTES - 1) + "\n"
    handle = None
    try:
        handle = open_private(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(handle, content.encode(), 0)
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, *EXHAUSTED):
            raise
    finally:
        if handle is not None:
            os.close(handle)
