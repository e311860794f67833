"""What takes long to make is made once on a machine, and kept in INGESTOR_TEST_CACHE, else in the user's cache."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def build_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name, filled by ``make(folder)`` at the first call of a machine, by one process at a time."""
    folder = cache() / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            make(folder)
            (folder / "installed").touch()
    return folder


def cache() -> Path:
    named = os.environ.get("INGESTOR_TEST_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache" if os.environ.get("HOME") else None)
    return Path(base or tempfile.gettempdir()) / "ingestor-tests"
