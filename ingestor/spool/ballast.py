"""Room kept on the disk for the day it is full: even to forget what was acknowledged, SQLite must write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

BALLAST_BYTES = 32 << 20  # twice what the log grows to between two checkpoints


class Ballast:
    """A preallocated file beside the spool: dropped when the disk is full, taken up again when there is room."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.held = self.take_up()

    def take_up(self) -> bool:
        """Have the file. False, with nothing kept, if the disk has no room for it."""
        try:
            self._allocate()
        except OSError as error:
            self._path.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.held = False
        else:
            self.held = True
        return self.held

    def _allocate(self) -> None:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, BALLAST_BYTES)
        finally:
            os.close(handle)

    def drop(self) -> None:
        """Free its room."""
        self._path.unlink(missing_ok=True)
        self.held = False
