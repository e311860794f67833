"""Keep what takes long to build between test runs, in INGESTOR_TEST_CACHE or the user's cache folder."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of this name. The first call on a machine fills it with ``build(folder)``.

    Only one process at a time builds; others wait for it.
    """
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            build(folder)
            (folder / "installed").touch()
    return folder


def cache_folder() -> Path:
    configured = os.environ.get("INGESTOR_TEST_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache" if os.environ.get("HOME") else None)
    return Path(base or tempfile.gettempdir()) / "ingestor-tests"
