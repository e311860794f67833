"""Kills and errors at a chosen system call: they come in place of the call, and what it would have done is not done."""

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
    """The ``number``-th such call of a thread; ``path``: only those on this file.

    ``number`` may be text: ``5+3`` is the fifth and then every third. ``effect`` in strace's words.
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
def inject_fault(pid: int, cut: SyscallFault) -> Iterator[None]:
    """Whatever process ``pid`` forks meanwhile meets the cut."""
    with _attached(pid, "-e", f"trace={cut.call}", *cut.options, "-o", "/dev/null"):
        yield


@contextmanager
def count_calls(pid: int, log: Path) -> Iterator[Counter[tuple[str, str]]]:
    """The calls of whatever ``pid`` forks meanwhile, by (call, file or ``socket``); filled at the end of the block."""
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
            tracer.terminate()  # it detaches


def _wait_for_tracer(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + ATTACH_SECONDS
    while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            skip_missing("directed kills: strace may not attach to a process of ours (ptrace is forbidden here)")
        time.sleep(0.01)
