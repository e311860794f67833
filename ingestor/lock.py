"""One process at a time: an advisory lock on a file, which names its holder and ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ingestor.errors import Held


def hold(path: Path, remedy: str) -> int:
    """Lock ``path`` until the returned descriptor is closed. Raises Held, naming the holder and the ``remedy``."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise Held(f"{path}: held by process {holder}; {remedy}") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle
