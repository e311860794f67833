"""Replace the operator's file by an edited one, whole or not at all, once it is known to be a good configuration."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ingestor.config.loader import find_file, parse_config, read_file
from ingestor.config.model import Config
from ingestor.config.subscriptions import FeedNamer
from ingestor.core.files import sync_folder
from ingestor.errors import ConfigError, ConfigProblem

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def rewrite_file(
    edit: Callable[[str, str], str],
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    *,
    feed_name: FeedNamer | None = None,
) -> tuple[Config, str, str]:
    """Put the file through ``edit(text, name)``. Returns what it says then, and the text before and after.

    The file's mode, owner and attributes stay, and a link to it stays a link. Raises ConfigError, with nothing changed:
    for a file that was wrong before or would be afterwards, and for one that cannot be replaced.
    """
    env = os.environ if env is None else env
    source = find_file(path, env)
    raw, is_private = read_file(source)
    parse_config(source, raw, is_private, env, feed_name)
    before = raw.decode()
    mark = _BOM if before.startswith(_BOM) else ""
    after = mark + edit(before.removeprefix(mark), str(source))
    config = parse_config(source, after.encode(), is_private, env, feed_name)
    if after != before:
        _replace(source, raw, after.encode())
    return config, before, after


def _replace(source: Path, before: bytes, after: bytes) -> None:
    target = Path(os.path.realpath(source))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "wb") as file:  # noqa: PTH123 -- a handle is no path
                _like(target, handle, name)
                file.write(after)
                file.flush()
                os.fsync(handle)
            if read_file(source)[0] != before:
                raise ConfigError([ConfigProblem(str(source), "", "was changed meanwhile by somebody else; try again")])
            os.replace(name, target)  # noqa: PTH105
        except BaseException:
            os.unlink(name)  # noqa: PTH108
            raise
        sync_folder(target.parent)
    except OSError as error:
        said = os.strerror(error.errno or 0)
        message = f"cannot be replaced ({said}); run this as a user who may write in {target.parent}, and own the file"
        raise ConfigError([ConfigProblem(str(source), "", message)]) from None


def _like(target: Path, handle: int, name: str) -> None:
    """Give a new file the owner, mode and attributes of another, but not its times."""
    wanted = target.stat()
    os.fchown(handle, wanted.st_uid, wanted.st_gid)
    shutil.copystat(target, name)
    os.utime(handle)
