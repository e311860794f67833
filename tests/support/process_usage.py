"""Read the memory, CPU time and descriptors of a process from /proc."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def resident_mib(pid: int) -> float:
    """Return the resident memory (VmRSS)."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time so far, in user and kernel mode."""
    return _seconds(pid, 2)


def family_cpu_seconds(pid: int, without: Collection[int] = ()) -> float:
    """Return the CPU time so far of a process and its children, those that have ended included.

    ``without`` are running children that do not count.
    """
    while True:
        children = _children(pid)
        try:
            seconds = _seconds(pid, 4) + sum(cpu_seconds(child) for child in children if child not in without)
        except (FileNotFoundError, ProcessLookupError):
            continue  # one has just ended: its time is its parent's now
        if _children(pid) == children:
            return seconds


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _seconds(pid: int, count: int) -> float:
    """Sum the first ``count`` of: user mode, kernel mode, both of children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 11 + count])) / os.sysconf("SC_CLK_TCK")


def open_descriptors(pid: int) -> int:
    """Return the number of open file descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
