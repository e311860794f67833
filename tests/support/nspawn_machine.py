"""A small Debian booted by systemd in a container: installed by debootstrap, run by systemd-nspawn.

It has only a loopback network. Its changes are kept in memory and are lost at the end.
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

from .build_cache import build_once, cache_folder
from .requirements import skip_missing

TOP = Path(__file__).parents[2]
PYTHONS: Mapping[str, str] = {"bookworm": "3.11", "trixie": "3.13"}  # Debian 12 and 13: systemd 252 and 257
# procps contains the kill of ExecReload=. A regular installation of Debian has it, and sudo.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps", "sudo", "python3-venv", "postgresql")
BOOT_SECONDS = 60
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class NspawnMachine:
    """``with NspawnMachine("bookworm", folder, at="/var/lib/x") as machine``: a Debian with ``folder`` mounted.

    The checkout is in /src, and pip finds its requirements without an index.
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
        self._log = (cache_folder() / "nspawn.log").open("a+b")
        fcntl.flock(self._log, fcntl.LOCK_EX)  # two machines would share a control group
        self._nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "-D", self._tree, "--volatile=overlay"),
                *(f"--bind-ro={TOP}:/src", f"--bind-ro={self._wheels}:/wheels", self._shared, "--private-network"),
                "--system-call-filter=bpf",  # for IPAddressDeny= and DevicePolicy=
                *("--boot", "--register=no", "--console=pipe"),
                # Without systemd on the host, no scope can be requested.
                *(() if Path("/run/systemd/system").exists() else ("--keep-unit",)),
            ],
            # Without this, systemd 257 does not start on a host with the older cgroup hierarchy.
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self._init = self._wait_for_boot() or self._skip_unbootable()
            self.run("systemctl is-system-running --wait || true")
            self.run("printf '[global]\nno-index = true\nfind-links = /wheels\n' > /etc/pip.conf")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._nspawn.terminate()  # systemd then stops every unit in order
        try:
            self._nspawn.wait(60)
        finally:
            self._nspawn.kill()
            self._log.close()

    @property
    def root(self) -> Path:
        """The machine's root folder, as seen from here."""
        return Path(f"/proc/{self._init}/root")

    def run(self, script: str, *, stdin: str = "") -> str:
        """Run a script in root's shell and return its output. Asserts that every command succeeds."""
        result = self.run_unchecked(script, stdin=stdin)
        assert result.returncode == 0, f"{script}\n{result.stdout}{result.stderr}"
        return result.stdout.strip()

    def run_unchecked(self, script: str, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a script in root's shell. It may fail."""
        enter = ("nsenter", "--target", str(self._init), "--all", "--", "bash", "-euo", "pipefail", "-c", script)
        return subprocess.run(enter, env=_ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=120)

    def _wait_for_boot(self) -> int | None:
        """Return the pid of the machine's systemd once it accepts requests; None if it does not within the time."""
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        deadline = time.monotonic() + BOOT_SECONDS
        while self._nspawn.poll() is None and time.monotonic() < deadline:
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/root/run/systemd/private").exists():
                    return int(pid)
            time.sleep(0.1)
        return None

    def _skip_unbootable(self) -> NoReturn:
        self._log.seek(0)
        output = self._log.read().decode(errors="replace")
        skip_missing(f"the unit under a booted systemd: systemd-nspawn does not boot here: {output.strip()[-500:]}")


def tree(suite: str) -> Path:
    """Return the root folder of this Debian, which is never written to. Skips the test without a mirror."""
    digest = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        # An earlier attempt may have left /proc mounted there.
        subprocess.run(["rm", "-rf", "--one-file-system", folder / "root"], check=True)
        _fetch("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, folder / "root")

    return build_once(f"debian-{suite}-{digest}", build) / "root"


def wheels(python: str) -> Path:
    """Return a folder with every wheel that installing the checkout needs, for this version of Python."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    requirements = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["postgres"],
        *project["build-system"]["requires"],
    ]
    digest = hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        only = ("--only-binary=:all:", f"--python-version={python}")
        _fetch(sys.executable, "-m", "pip", "download", "-q", *only, "-d", folder, *requirements)

    return build_once(f"wheels-{python}-{digest}", build)


def _fetch(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if result.returncode:
        output = (result.stdout + result.stderr).strip()[-300:]
        skip_missing(f"the unit under a booted systemd: {Path(command[0]).name} failed: {output}")
