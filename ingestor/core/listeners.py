"""Find out which process listens on a TCP port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_LISTENING = "0A"  # a state in /proc/net/tcp


def find_listener(port: int) -> tuple[int, str] | None:
    """Return id and name of the process that listens on the port, None if this user may not see it. Reads all /proc."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        try:
            if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                return int(process.name), (process / "comm").read_text().strip()
        except OSError:  # it has ended, or belongs to another user
            continue
    return None


def describe_listener(port: int) -> str:
    """Return which process listens on the port, for a message."""
    found = find_listener(port)
    return f"process {found[0]} ({found[1]})" if found else "a process that this user may not see"


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:  # no IPv6, or no /proc
            continue
        for _, local, _, state, *rest in map(str.split, lines):
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                yield rest[5]
