"""Replace the configuration file by an edited version, atomically, if the result is valid."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ingestor.config.loader import find_file, parse_config, read_file, ticker_files
from ingestor.config.model import Config
from ingestor.config.subscriptions import FeedNamer
from ingestor.config.ticker_file import TickerFiles
from ingestor.core.files import sync_folder
from ingestor.errors import ConfigError, ConfigProblem

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def rewrite_file(
    edit: Callable[[str, str], str],
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    *,
    feed_name: FeedNamer | None = None,
    files: TickerFiles | None = None,
) -> tuple[Config, str, str]:
    """Replace the file's text by ``edit(text, name)``. Return the new configuration, and the text before and after.

    Also replaces the files of tickers that ``edit`` has changed in ``files``. Keeps a file's mode, owner and
    attributes, and follows symbolic links. Raises ConfigError, without changing anything, if the configuration is
    invalid before or after the edit, or a file cannot be replaced.
    """
    env = os.environ if env is None else env
    source = find_file(path, env)
    raw, is_private = read_file(source)
    files = files or ticker_files(source, env)
    parse_config(source, raw, is_private, env, feed_name, files)
    before = raw.decode()
    bom = _BOM if before.startswith(_BOM) else ""
    after = bom + edit(before.removeprefix(bom), str(source))
    config = parse_config(source, after.encode(), is_private, env, feed_name, files)
    for file, text in files.original.items():
        _replace(file, text.encode(), files.lists[file].text.encode())
    if after != before:
        _replace(source, raw, after.encode())
    return config, before, after


def _replace(source: Path, before: bytes, after: bytes) -> None:
    target = Path(os.path.realpath(source))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        part = Path(name)
        try:
            with open(handle, "wb") as file:  # noqa: PTH123 -- a handle is no path
                _copy_attributes(target, handle, part)
                file.write(after)
                file.flush()
                os.fsync(handle)
            if source.read_bytes() != before:
                raise ConfigError([ConfigProblem(str(source), "", "was changed by somebody else; repeat the command")])
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        message = f"cannot be replaced ({reason}); run this as the owner of the file, who may write to {target.parent}"
        raise ConfigError([ConfigProblem(str(source), "", message)]) from None


def _copy_attributes(target: Path, handle: int, part: Path) -> None:
    """Copy owner, mode and extended attributes, but not the times."""
    status = target.stat()
    os.fchown(handle, status.st_uid, status.st_gid)
    shutil.copystat(target, part)
    os.utime(handle)
