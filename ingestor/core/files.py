"""Files that must survive a power cut, and a lock file that only one process can hold."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ingestor.errors import AlreadyLocked

LOCK_BYTES = 16  # a process id, padded with blanks, and a newline
RELEASED = b"\n"  # the first byte of a lock file that was released


def sync_folder(folder: Path) -> None:
    """Fsync a folder: a file that was synced may still be lost if its name was not. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_missing(path: Path) -> bool:
    """Return whether a file does not exist. False if this user may not find out: opening it reports the reason."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


class FileLock:
    """An advisory lock on a file, which names its holder and ends with the holder's process.

    ``abandoned`` is true if the previous holder ended without releasing it. The content always has the same length, so
    that an existing lock can be taken on a full disk.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        """Take the lock. Raises AlreadyLocked, which names the holder and the ``remedy``, and OSError."""
        self._handle = _open_locked(path, remedy)
        try:
            self.abandoned = os.pread(self._handle, 1, 0) not in (b"", RELEASED)
            # Synced, so that the file still says "held" after a kill or a power cut.
            os.pwrite(self._handle, f"{os.getpid():<{LOCK_BYTES - 1}}\n".encode(), 0)
            os.fsync(self._handle)
        except OSError:
            os.close(self._handle)
            raise

    def release(self, *, clean: bool = True) -> None:
        """Release the lock. Unless ``clean``, the next holder finds it ``abandoned``."""
        if clean:
            os.pwrite(self._handle, RELEASED, 0)
        os.close(self._handle)


def _open_locked(path: Path, remedy: str) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, LOCK_BYTES).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise AlreadyLocked(f"{path}: held by process {holder}; {remedy}") from None
    return handle
