"""Disks of our own: one whose power can be cut, and one that is full when the test wants it. They need root.

How a power cut is had: the disk is an image on another file system, and that one is frozen while the image is copied.
What the disk's file system has not written yet (its page cache) is not in the copy, and the copy is of one moment. So
a sync that is missing is found. A device that lies about its own volatile cache is not imitated.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .requirements import skip_missing

DISK_BYTES = 192 << 20
_AROUND_BYTES = 2 * DISK_BYTES


class CuttableDisk:
    """An ext4 file system at ``folder``."""

    def __init__(self, around: Path, folder: Path) -> None:
        self._around = around
        self.folder = folder
        self.image = around / "image"

    def copy_as_after_power_cut(self, copy: Path) -> None:
        """Make ``copy`` the image as a power cut in this moment would leave it. Everybody else goes on."""
        _do("fsfreeze", "--freeze", self._around)
        try:
            _do("cp", "--sparse=always", self.image, copy)
        finally:
            _do("fsfreeze", "--unfreeze", self._around)


@contextmanager
def cuttable_disk(folder: Path) -> Iterator[CuttableDisk]:
    """``folder`` must be empty; the disk is mounted in it."""
    _need_root()
    with ext4(_image(folder / "around.img", _AROUND_BYTES), folder / "around") as around:
        disk = CuttableDisk(around, folder / "disk")
        with ext4(_image(disk.image, DISK_BYTES), disk.folder):
            yield disk


@contextmanager
def ext4(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image; ext4 recovers what its journal holds."""
    with _mounted(folder, "-o", "loop", image):
        yield folder


@contextmanager
def small_disk(folder: Path, size_bytes: int, files: int = 0) -> Iterator[Path]:
    """A tmpfs of this size at ``folder``; with room for so many files and folders, itself included, or any number."""
    _need_root()
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size_bytes},nr_inodes={files}", "tmpfs"):
        yield folder


@contextmanager
def fill_disk(folder: Path, name: str = "filler") -> Iterator[None]:
    """Until the end of the block nothing more can be written to the file system of ``folder``."""
    filler = folder / name
    handle = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        _fill(handle)
        yield
    finally:
        os.close(handle)
        filler.unlink()


def _fill(handle: int) -> None:
    for size in (1 << 20, 1 << 12):
        try:
            while True:
                os.write(handle, bytes(size))
        except OSError:
            pass  # full, for pieces of this size


def _image(file: Path, size_bytes: int) -> Path:
    with file.open("wb") as image:
        image.truncate(size_bytes)
    _do("mkfs.ext4", "-q", "-F", file)
    return file


@contextmanager
def _mounted(folder: Path, *what: str | Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    try:
        _do("mount", *what, folder)
    except subprocess.CalledProcessError as error:
        skip_missing(f"disks: mount {what[-1]} failed: {error.stderr.decode().strip()}")
    try:
        yield
    finally:
        _do("umount", folder)


def _need_root() -> None:
    if os.geteuid() != 0:
        skip_missing("disks that are full or lose their power: run as root, to mount them")


def _do(program: str, *arguments: str | Path) -> None:
    try:
        subprocess.run([program, *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        skip_missing(f"disks: install {program} (e2fsprogs, util-linux)")
