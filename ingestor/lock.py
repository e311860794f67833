"""One process at a time: an advisory lock on a file, which names its holder and ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ingestor.errors import Held


class Lock:
    """Held until ``release``. ``abandoned``: its last holder ended without releasing it."""

    def __init__(self, path: Path, remedy: str) -> None:
        """Take the lock, or raise Held, which names the holder and the ``remedy``."""
        self._handle = _lock(path, remedy)
        self.abandoned = bool(os.pread(self._handle, 1, 0))
        name = f"{os.getpid()}\n".encode()
        # Never empty in between, and on the disk: a kill or a power cut must find it as it leaves it, held.
        os.pwrite(self._handle, name, 0)
        os.ftruncate(self._handle, len(name))
        os.fsync(self._handle)

    def release(self, *, clean: bool = True) -> None:
        """Let the next one in; unless ``clean``, it will find the lock ``abandoned``."""
        if clean:
            os.ftruncate(self._handle, 0)
        os.close(self._handle)


def _lock(path: Path, remedy: str) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise Held(f"{path}: held by process {holder}; {remedy}") from None
    return handle
