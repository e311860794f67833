"""Try what a sandboxed service must not be able to do, and print the outcome of each attempt. Needs only Python.

All but the last attempts are allowed to a plain user; what needs privileges would be refused anyway.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

NEW_USER_NAMESPACE = 0x10000000
PER_LINUX32 = 8
NOT_ITS_OWN = ("/", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/opt/ingestor")
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, argument: int) -> None:
    if getattr(libc, name)(argument) < 0:
        raise OSError(ctypes.get_errno(), name)


def send(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        channel.sendto(b"", (address, 9))


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "allowed"


def run_in(folder: Path) -> None:
    program = folder / "program"
    shutil.copy("/bin/true", program)
    try:
        subprocess.run([program], check=True)
    finally:
        program.unlink()


def attempts(own: Path) -> dict[str, Callable[[], object]]:
    """Return the attempts by name. ``own`` is a folder that the service may write to."""
    file = own / "file"
    file.touch()
    return {
        "run a program in its own folder": lambda: run_in(own),
        "run a program in /tmp": lambda: run_in(Path("/tmp")),
        "run a program in /var/tmp": lambda: run_in(Path("/var/tmp")),
        "run a program in /dev/shm": lambda: run_in(Path("/dev/shm")),
        "look into /home": lambda: list(Path("/home").iterdir()),
        "see what others have in /tmp": lambda: Path("/tmp/of-others").stat(),
        "see another process": lambda: Path("/proc/1").stat(),
        "read the machine's memory figures": lambda: Path("/proc/meminfo").stat(),
        "memory that is written and run": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
        "make a file setuid": lambda: file.chmod(0o4755),
        "give a file an owner": lambda: os.chown(file, os.getuid(), os.getgid()),
        "choose its processors": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "make a namespace": lambda: call("unshare", NEW_USER_NAMESPACE),
        "be another system": lambda: call("personality", PER_LINUX32),
        "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "send to a group": lambda: send("224.0.0.1"),
        **{f"create a file in {folder}": (Path(folder) / "created").touch for folder in NOT_ITS_OWN},
    }


if __name__ == "__main__":
    print(json.dumps({name: outcome(attempt) for name, attempt in attempts(Path(sys.argv[1])).items()}))
