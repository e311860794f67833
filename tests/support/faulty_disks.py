"""Disks for tests: one whose power can be cut, and one that is full on demand. They need root.

To simulate a power cut, the disk is an image on another file system, which is frozen while the image is copied. The
copy is of one moment and lacks what the disk's file system has not written yet (its page cache), so a missing sync is
found. A device that loses its own volatile cache is not simulated.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .requirements import skip_missing

DISK_BYTES = 192 << 20
_OUTER_BYTES = 2 * DISK_BYTES


class CuttableDisk:
    """An ext4 file system, mounted at ``folder``, in an image on another file system at ``outer``."""

    def __init__(self, outer: Path, folder: Path) -> None:
        self._outer = outer
        self.folder = folder
        self.image = outer / "image"

    def copy_as_after_power_cut(self, copy: Path) -> None:
        """Copy the image as a power cut at this moment would leave it. Other processes continue."""
        _run("fsfreeze", "--freeze", self._outer)
        try:
            _run("cp", "--sparse=always", self.image, copy)
        finally:
            _run("fsfreeze", "--unfreeze", self._outer)


@contextmanager
def cuttable_disk(folder: Path) -> Iterator[CuttableDisk]:
    """Mount a disk inside ``folder``, which must be empty."""
    _need_root()
    with ext4(_image(folder / "outer.img", _OUTER_BYTES), folder / "outer") as outer:
        disk = CuttableDisk(outer, folder / "disk")
        with ext4(_image(disk.image, DISK_BYTES), disk.folder):
            yield disk


@contextmanager
def ext4(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image. Mounting replays the journal of ext4."""
    with _mounted(folder, "-o", "loop", image):
        yield folder


@contextmanager
def small_disk(folder: Path, size_bytes: int, files: int = 0) -> Iterator[Path]:
    """Mount a tmpfs of this size at ``folder``. ``files`` limits files and folders, itself included; 0 does not."""
    _need_root()
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size_bytes},nr_inodes={files}", "tmpfs"):
        yield folder


@contextmanager
def fill_disk(folder: Path, name: str = "filler") -> Iterator[None]:
    """Leave no space on the file system of ``folder`` until the end of the block."""
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
            pass  # full for blocks of this size


def _image(file: Path, size_bytes: int) -> Path:
    with file.open("wb") as image:
        image.truncate(size_bytes)
    _run("mkfs.ext4", "-q", "-F", file)
    return file


@contextmanager
def _mounted(folder: Path, *source: str | Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    try:
        _run("mount", *source, folder)
    except subprocess.CalledProcessError as error:
        skip_missing(f"disks: mount {source[-1]} failed: {error.stderr.decode().strip()}")
    try:
        yield
    finally:
        _run("umount", "-l", folder)  # a connection may not be collected yet


def _need_root() -> None:
    if os.geteuid() != 0:
        skip_missing("disks that are full or lose power: run as root, to mount them")


def _run(program: str, *arguments: str | Path) -> None:
    try:
        subprocess.run([program, *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        skip_missing(f"disks: install {program} (e2fsprogs, util-linux)")
