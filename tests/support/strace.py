"""Inject kills and errors at a chosen system call. They replace the call, which is not executed."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .requirements import skip_missing

CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "sendto")
ATTACH_SECONDS = 10
_CALL = re.compile(r"^\d+ +(\w+)\(\d+<([^>]*)>", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SyscallFault:
    """A fault at the ``number``-th such call of a thread; ``path`` counts only calls on this file.

    ``number`` may be text: ``5+3`` means the fifth call and then every third. ``effect`` uses strace's syntax.
    """

    call: str
    number: int | str
    path: Path | None = None
    effect: str = "signal=SIGKILL"

    @property
    def options(self) -> list[str]:
        where = [] if self.path is None else ["-P", str(self.path)]
        return [*where, "-e", f"inject={self.call}:{self.effect}:when={self.number}"]


@contextmanager
def inject_fault(pid: int, fault: SyscallFault) -> Iterator[None]:
    """Inject the fault into every process that ``pid`` forks during the block."""
    with _attached(pid, "-e", f"trace={fault.call}", *fault.options, "-o", "/dev/null"):
        yield


@contextmanager
def count_calls(pid: int, log: Path) -> Iterator[Counter[tuple[str, str]]]:
    """Count the calls of processes that ``pid`` forks during the block, by (call, file or ``socket``).

    The counter is filled at the end of the block.
    """
    counts: Counter[tuple[str, str]] = Counter()
    with _attached(pid, "-y", "-e", f"trace={','.join(CALLS)}", "-o", str(log)):
        yield counts
    for call, where in _CALL.findall(log.read_text(errors="replace")):
        counts[call, "socket" if where.startswith("socket:") else where] += 1


@contextmanager
def _attached(pid: int, *options: str) -> Iterator[None]:
    if not shutil.which("strace"):
        skip_missing("directed kills: install strace")
    with subprocess.Popen(["strace", "-f", "-qq", *options, "-p", str(pid)], stderr=subprocess.PIPE) as tracer:
        try:
            _wait_for_tracer(pid, tracer)
            yield
        finally:
            tracer.terminate()  # strace then detaches


def _wait_for_tracer(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + ATTACH_SECONDS
    while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            skip_missing("directed kills: strace cannot attach to our own process (ptrace is forbidden)")
        time.sleep(0.01)
