"""Replacing the configuration file: what it keeps, and when it is left unchanged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ingestor.config.rewrite import rewrite_file
from ingestor.errors import ConfigError

OLD = "subscriptions: [{path: p, ticker: A}]\n"
NEW = "subscriptions: [{path: p, ticker: B}]\n"


def to_new(_text: str, _name: str) -> str:
    return NEW


@pytest.fixture
def file(folder: Path) -> Path:
    file = folder / "config.yaml"
    file.write_text(OLD)
    return file


def test_rewrite_keeps_mode_owner_and_symlink(file: Path) -> None:
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 12, 34)
    (file.parent / "real").mkdir()
    real = file.rename(file.parent / "real" / "ours.yaml")
    file.symlink_to("real/ours.yaml")
    before = real.stat()
    config, old, new = rewrite_file(to_new, file, {})
    assert (old, new, real.read_text()) == (OLD, NEW, NEW)
    assert config.subscriptions[0].ticker == "B"
    assert file.is_symlink() and config.source == file
    after = real.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino and after.st_mtime_ns > before.st_mtime_ns
    assert [entry.name for entry in real.parent.iterdir()] == ["ours.yaml"]


def test_rewrite_keeps_bom_and_line_endings(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfsubscriptions:\r\n- path: p\r\n")
    rewrite_file(lambda text, _: text.replace("path: p", "path: q"), file, {})
    assert file.read_bytes() == b"\xef\xbb\xbfsubscriptions:\r\n- path: q\r\n"


@pytest.mark.parametrize("text", ["subscriptions: [{path: p, ticker: A B}]\n", "watch: perhaps\n" + NEW, ""])
def test_invalid_result_is_not_written(file: Path, text: str) -> None:
    inode = file.stat().st_ino
    with pytest.raises(ConfigError):
        rewrite_file(lambda _text, _name: text, file, {})
    assert (file.read_text(), file.stat().st_ino) == (OLD, inode)
    assert [entry.name for entry in file.parent.iterdir()] == ["config.yaml"]


def test_invalid_file_is_not_edited(file: Path) -> None:
    file.write_text("watch: perhaps\n" + OLD)
    with pytest.raises(ConfigError, match="watch: is neither true nor false"):
        rewrite_file(to_new, file, {})


def test_concurrent_change_is_not_overwritten(file: Path) -> None:
    def slowly(_text: str, _name: str) -> str:
        file.write_text(OLD + "# mine\n")
        return NEW

    with pytest.raises(ConfigError, match="was changed by somebody else"):
        rewrite_file(slowly, file, {})
    assert file.read_text() == OLD + "# mine\n"
    assert [entry.name for entry in file.parent.iterdir()] == ["config.yaml"]


def test_unchanged_text_is_not_written(file: Path) -> None:
    inode = file.stat().st_ino
    rewrite_file(lambda text, _: text, file, {})
    assert file.stat().st_ino == inode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
@pytest.mark.parametrize("mode", [0o555, 0o777])
def test_rewrite_without_permission_is_rejected(file: Path, mode: int) -> None:
    """In a folder where this user may write, the file would become theirs."""
    file.parent.chmod(mode)
    for above in file.parent.parents:
        above.chmod(above.stat().st_mode | 0o111)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"cannot be replaced \((Permission|Operation) .*run this as the owner"):
            rewrite_file(to_new, file, {})
    finally:
        os.seteuid(0)
    assert file.read_text() == OLD
    assert [entry.name for entry in file.parent.iterdir()] == ["config.yaml"]
