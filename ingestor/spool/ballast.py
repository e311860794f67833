"""Disk space reserved for when the disk is full: even to delete acknowledged entries, SQLite must write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ingestor.core.files import open_private
from ingestor.core.os_errors import EXHAUSTED

BALLAST_BYTES = 32 << 20  # several times what the WAL reaches between two checkpoints


class Ballast:
    """A preallocated file beside the spool: released when the disk is full, reserved again when there is space."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.held = False
        self.reserve()

    def reserve(self) -> bool:
        """Allocate the file. Without enough space or a descriptor it is not ``held``. Raises OSError otherwise.

        Returns whether space is missing.
        """
        try:
            handle = open_private(self._path, os.O_RDWR | os.O_CREAT)
            try:
                os.posix_fallocate(handle, 0, BALLAST_BYTES)
            finally:
                os.close(handle)
        except OSError as error:
            self.release()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, *EXHAUSTED):
                raise
            return error.errno not in EXHAUSTED
        self.held = True
        return False

    def release(self) -> None:
        """Delete the file, which frees its space."""
        self._path.unlink(missing_ok=True)
        self.held = False
