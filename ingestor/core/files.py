"""Files that must survive a power cut, and a lock file that only one process can hold."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from ingestor.errors import AlreadyLocked, PermissionDenied

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


def open_private(path: Path, flags: int) -> int:
    """Open a file of our own, in a folder where others may have put a link in its place. Returns its descriptor.

    Raises PermissionDenied if it is not a regular file with one name, and OSError.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionDenied(f"{path}: is a symbolic link, which is not followed; delete it") from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise PermissionDenied(f"{path}: is not a file of its own (it is a hard link, or no regular file); delete it")
    return handle


class FileLock:
    """An advisory lock on a file, which names its holder and ends with the holder's process.

    ``released`` is true if the previous holder released it. That is no proof, because the file may have been replaced.
    The content always has the same length, so that an existing lock can be taken on a full disk.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        """Take the lock. Raises AlreadyLocked, which names the holder and the ``remedy``, and OSError."""
        self._handle = _open_locked(path, remedy)
        try:
            self.released = os.pread(self._handle, 1, 0) == RELEASED
            os.pwrite(self._handle, f"{os.getpid():<{LOCK_BYTES - 1}}\n".encode(), 0)
        except OSError:
            os.close(self._handle)
            raise

    def release(self) -> None:
        os.close(self._handle)


def _open_locked(path: Path, remedy: str) -> int:
    handle = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, LOCK_BYTES).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise AlreadyLocked(f"{path}: held by process {holder}; {remedy}") from None
    return handle
