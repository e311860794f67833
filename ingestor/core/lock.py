"""One process at a time: an advisory lock on a file, which names its holder and ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ingestor.errors import Held

NAME_BYTES = 16  # of a process id and what fills up the line
FREE = b"\n"  # the first byte of a lock that was released


class Lock:
    """Held until ``release``. ``abandoned``: its last holder ended without releasing it.

    What is written is as long as what stood there, so that one that is there already can be had on a full disk.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        """Take the lock, or raise Held, which names the holder and the ``remedy``. Raises OSError."""
        self._handle = _lock(path, remedy)
        try:
            self.abandoned = os.pread(self._handle, 1, 0) not in (b"", FREE)
            # On the disk: a kill or a power cut must find it as it leaves it, held.
            os.pwrite(self._handle, f"{os.getpid():<{NAME_BYTES - 1}}\n".encode(), 0)
            os.fsync(self._handle)
        except OSError:
            os.close(self._handle)
            raise

    def release(self, *, clean: bool = True) -> None:
        """Let the next one in; unless ``clean``, it will find the lock ``abandoned``."""
        if clean:
            os.pwrite(self._handle, FREE, 0)
        os.close(self._handle)


def _lock(path: Path, remedy: str) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, NAME_BYTES).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise Held(f"{path}: held by process {holder}; {remedy}") from None
    return handle
