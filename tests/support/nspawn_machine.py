"""A small Debian that systemd has booted, without a machine: a tree by debootstrap, run by systemd-nspawn.

It has no network but its own loopback. What is written in it lies in memory and is gone at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, Self

from .build_cache import build_once, cache
from .requirements import skip_missing

TOP = Path(__file__).parents[2]
PYTHONS: Mapping[str, str] = {"bookworm": "3.11", "trixie": "3.13"}  # Debian 12 and 13: systemd 252 and 257
# procps has the kill of ExecReload=; a Debian that was installed in the usual way has it, and sudo, too.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps", "sudo", "python3-venv", "postgresql")
BOOT_SECONDS = 60
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class NspawnMachine:
    """``with Machine("bookworm", folder, at="/var/lib/x") as machine``: a Debian with one folder of ours in it.

    The checkout is in /src, and pip finds what that needs without an index.
    """

    def __init__(self, suite: str, folder: Path, *, at: str) -> None:
        if os.geteuid() != 0:
            skip_missing("the unit under a booted systemd: run as root")
        for program, package in (("systemd-nspawn", "systemd-container"), ("debootstrap", "debootstrap")):
            if shutil.which(program) is None:
                skip_missing(f"the unit under a booted systemd: install {package}")
        self.suite = suite
        self._tree = tree(suite)
        self._wheels = wheels(PYTHONS[suite])
        self._shared = f"--bind={folder}:{at}"

    def __enter__(self) -> Self:
        self._said = (cache() / "nspawn.log").open("a+b")
        fcntl.flock(self._said, fcntl.LOCK_EX)  # two would share a control group
        self._nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "-D", self._tree, "--volatile=overlay"),
                *(f"--bind-ro={TOP}:/src", f"--bind-ro={self._wheels}:/wheels", self._shared, "--private-network"),
                "--system-call-filter=bpf",  # for IPAddressDeny= and DevicePolicy=
                *("--boot", "--register=no", "--console=pipe"),
                *(() if Path("/run/systemd/system").exists() else ("--keep-unit",)),  # nobody to ask for a scope
            ],
            # Without it systemd 257 does not start on a machine that still has the older hierarchy.
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
        )
        try:
            self._init = self._booted() or self._give_up()
            self.run("systemctl is-system-running --wait || true")
            self.run("printf '[global]\nno-index = true\nfind-links = /wheels\n' > /etc/pip.conf")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._nspawn.terminate()  # which has systemd stop everything in order
        try:
            self._nspawn.wait(60)
        finally:
            self._nspawn.kill()
            self._said.close()

    @property
    def root(self) -> Path:
        """Its root, as we see it."""
        return Path(f"/proc/{self._init}/root")

    def run(self, script: str, *, stdin: str = "") -> str:
        """What root's shell says to a script, whose every command must succeed. ``typed``: what is then entered."""
        done = self.run_unchecked(script, stdin=stdin)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def run_unchecked(self, script: str, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """The same, where it may fail."""
        enter = ("nsenter", "--target", str(self._init), "--all", "--", "bash", "-euo", "pipefail", "-c", script)
        return subprocess.run(enter, env=_ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=120)

    def _booted(self) -> int | None:
        """The pid of its systemd, once that can be asked; None if that does not come."""
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        deadline = time.monotonic() + BOOT_SECONDS
        while self._nspawn.poll() is None and time.monotonic() < deadline:
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/root/run/systemd/private").exists():
                    return int(pid)
            time.sleep(0.1)
        return None

    def _give_up(self) -> NoReturn:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        skip_missing(f"the unit under a booted systemd: systemd-nspawn does not boot here: {said.strip()[-500:]}")


def tree(suite: str) -> Path:
    """The root of this Debian, never written to. Skips, or fails, without a mirror."""
    digest = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]

    def make(folder: Path) -> None:
        # A try before this one may have left /proc mounted in it.
        subprocess.run(["rm", "-rf", "--one-file-system", folder / "root"], check=True)
        _fetch("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, folder / "root")

    return build_once(f"debian-{suite}-{digest}", make) / "root"


def wheels(python: str) -> Path:
    """A folder with everything that the installation of a checkout needs, for that version of Python."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["postgres"],
        *project["build-system"]["requires"],
    ]
    digest = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]

    def make(folder: Path) -> None:
        only = ("--only-binary=:all:", f"--python-version={python}")
        _fetch(sys.executable, "-m", "pip", "download", "-q", *only, "-d", folder, *wanted)

    return build_once(f"wheels-{python}-{digest}", make)


def _fetch(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-300:]
        skip_missing(f"the unit under a booted systemd: {Path(command[0]).name} failed: {said}")
