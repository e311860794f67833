"""Describe errors of the operating system: its message and, for an exhausted resource, what to raise."""

from __future__ import annotations

import codecs
import errno
import os
import resource
from contextlib import suppress

WANTED_DESCRIPTORS = 4096  # as in the systemd unit

_REMEDIES = {
    errno.EMFILE: "raise LimitNOFILE= of the service, or `ulimit -n`",
    errno.ENFILE: "the whole system has none left: raise fs.file-max",
    errno.EAGAIN: "raise TasksMax= of the service",  # of starting a thread
    errno.ENOMEM: "raise MemoryMax= of the service",
    errno.ENOBUFS: "the system has no memory left for sockets",
}
EXHAUSTED = frozenset(_REMEDIES)  # errnos of a resource that may be available again a moment later


def describe_os_error(number: int | None, default: str = "") -> str:
    """Return the system's message for an errno, with a remedy if a resource is exhausted; else ``default``."""
    if not number or number < 0:  # a resolver's own numbers are negative
        return default
    remedy = _REMEDIES.get(number)
    return os.strerror(number) + (f": {remedy}" if remedy else "")


def raise_descriptor_limit() -> None:
    """Raise the limit of open files to what the systemd unit sets, or as far as this process may.

    Also load the codecs for host names and config files: Python remembers for ever that it could not find one.
    """
    for name in ("idna", "utf-8-sig"):
        codecs.lookup(name)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if resource.RLIM_INFINITY != soft < wanted:
        with suppress(OSError, ValueError):  # a sandbox forbids it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
