"""Files that must survive a power cut, and a lock file that only one process can hold."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ingestor.errors import AlreadyLocked, FileWriteFailed, PermissionDenied

LOCK_BYTES = 16  # a process id, padded with blanks, and a newline
RELEASED = b"\n"  # the first byte of a lock file that was released


def sync_folder(folder: Path) -> None:
    """Fsync a folder: a file that was synced may still be lost if its name was not. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name once it is complete and synced. On failure, nothing is left.

    A pipe or a device is written to as it is. Raises FileWriteFailed.
    """
    path = path.resolve()
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        # A process id does not tell them apart: that of another container may be the same.
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FileWriteFailed(f"{path}: cannot be written ({error.strerror or error}); {_remedy(error)}") from None


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space there, or name a file on another disk"
    return "name a file in a folder that you may write to"


def is_missing(path: Path) -> bool:
    """Return whether a file does not exist. False if this user may not find out: opening it reports the reason."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def identity(path: Path) -> tuple[int, int]:
    """Return the device and inode of the file that has this name now. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino


def check_private(path: Path) -> None:
    """Raise PermissionDenied unless ``path`` is missing, or a regular file with one name: others may have put it there.

    Two programs that reach one SQLite file by two names would each have a lock and a WAL of their own.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise PermissionDenied(f"{path}: is a symbolic link, which is not followed; put the file itself there")
    if not stat.S_ISREG(found.st_mode):
        raise PermissionDenied(f"{path}: is not a regular file; move it away")
    if found.st_nlink > 1:
        number = f"find its other names with `find DIR -inum {found.st_ino}`"
        raise PermissionDenied(f"{path}: has a second name (hard link); {number} and remove them, or copy the file")


def open_private(path: Path, flags: int) -> int:
    """Open or create a file of our own, in a folder that others may write to. Returns its descriptor.

    Raises PermissionDenied as ``check_private`` does, and OSError.
    """
    check_private(path)  # first, because opening a pipe may block, and opening a device may change it
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


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
        """Release the lock. The file keeps the process id."""
        os.close(self._handle)


def lock_holder(path: Path) -> str | None:
    """Return the process id in a lock file that a process holds now; None if it is free or cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the handle is closed
    except BlockingIOError:
        return _read_holder(handle)
    finally:
        os.close(handle)
    return None


def _read_holder(handle: int) -> str:
    return os.pread(handle, LOCK_BYTES, 0).decode("ascii", "replace").strip() or "unknown"


def _open_locked(path: Path, remedy: str) -> int:
    handle = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read_holder(handle)
        os.close(handle)
        raise AlreadyLocked(f"{path}: held by process {holder}; {remedy}") from None
    return handle
