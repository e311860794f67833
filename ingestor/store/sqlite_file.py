"""Make sure that the SQLite file that is open is still the one that has its name.

SQLite would continue with a file that was deleted or replaced, and what it commits there would never be read.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Engine, event, exc

from ingestor.core.files import identity

_FileId: TypeAlias = tuple[int, int] | None  # device and inode; None: no such file

log = logging.getLogger(__name__)


def watch(engine: Engine, path: Path, *, warn: bool) -> None:
    """Compare the files at each checkout of a connection. If they differ, replace the connection by a new one.

    ``warn`` logs that. Register it after everything else that listens to "connect".
    """
    event.listen(engine, "connect", partial(_remember, path))
    event.listen(engine, "checkout", partial(_verify, warn))


def _remember(path: Path, connection: sqlite3.Connection, record: Any) -> None:
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the file of the WAL as well
    real = os.path.realpath(path)  # SQLite follows links too; the WAL is beside the file that one points to
    record.info["files"] = files = (path, Path(f"{real}-wal"), Path(f"{real}-shm"))
    record.info["file_ids"] = _file_ids(files)


def _verify(warn: bool, connection: sqlite3.Connection, record: Any, _: Any) -> None:
    files, before = record.info["files"], record.info["file_ids"]
    now = _file_ids(files)
    if now == before:
        return
    name = next(file for file, was, is_ in zip(files, before, now, strict=True) if was != is_)
    if warn:
        log.warning("%s was deleted or replaced while it was open; opening the files that are there now", name)
        _leave(connection, files, before, now)
    raise exc.DisconnectionError(f"{name} was deleted or replaced")  # the pool opens another connection


def _leave(
    connection: sqlite3.Connection, files: Sequence[Path], before: Sequence[_FileId], now: Sequence[_FileId]
) -> None:
    """Write what is only in the WAL to the file that is open, wherever that is now.

    If another file has its name, delete the WAL, which SQLite would apply to that one.
    """
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if now[0] != before[0]:
        for file, was, is_ in list(zip(files, before, now, strict=True))[1:]:
            if is_ is not None and is_ == was:
                file.unlink()


def _file_ids(files: Sequence[Path]) -> tuple[_FileId, ...]:
    return tuple(map(_file_id, files))


def _file_id(file: Path) -> _FileId:
    try:
        return identity(file)
    except OSError:
        return None
