"""What the README tells people to type, typed. Its two first lines, which install, are .ci/run's."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import until
from ..support.db_reader import DbReader
from ..support.postgres_server import free_port
from ..support.requirements import skip_missing

TOP = Path(__file__).parents[2]
TEXT = (TOP / "README.md").read_text()
PROGRAM = Path(sys.executable).with_name("ingestor")
UNIT = TOP / "systemd" / "ingestor.service"
KEY = "the-key-of-this-test"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("INGESTOR_")}


def block(containing: str, language: str = "sh") -> str:
    """The one code block of the README with this in it."""
    (found,) = (one for one in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if containing in one)
    return str(found)


def shell(script: str, *, folder: Path, typed: str = "", **environment: str) -> str:
    """What it says, run line by line as it was pasted; it must succeed. ``typed``: what is then entered."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=CLEAN | environment,
        input=typed,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(folder: Path, name: str, script: str) -> None:
    """A program of this name in a folder."""
    file = folder / name
    file.write_text(f"#!/bin/bash\nset -eu\n{script}\n")
    file.chmod(0o755)


async def test_try_it_steps_end_in_a_clean_check(simulator: FaultySimulator, tmp_path: Path) -> None:
    program(tmp_path, "editor", r"""sed -i 's/# api_key_file: null/api_key_file: api_key/' "$1" """)
    lines = block("ingestor init").splitlines()
    assert lines.pop().startswith("ingestor run")
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    provider = {"INGESTOR_PROVIDER__URL": simulator.url}
    environment = {"HOME": str(tmp_path), "EDITOR": f"{tmp_path}/editor", "PATH": path, **provider}
    run = partial(shell, "\n".join(lines), folder=tmp_path, typed=simulator.api_key, **environment)
    said = await asyncio.to_thread(run)
    assert "✓ API key: found" in said
    assert "✓ token:" in said
    assert "✗" not in said


# In two terminals.

Terminal = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """``terminal(block)`` types it in a checkout, and is the process that this starts."""
    port, checkout = str(free_port()), tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "ingestor").symlink_to(PROGRAM)
    shutil.copy(TOP / "config.yaml", checkout)
    environment = CLEAN | {"INGESTOR_HTTP__LISTEN": "127.0.0.1:0"}
    with ExitStack() as running, (tmp_path / "said").open("a") as said:

        def type_in(script: str) -> subprocess.Popen[str]:
            here = script.replace("8700", port).replace("/tmp/ingestor-try", str(tmp_path / "try"))
            command = ["bash", "-c", f"exec env {here}"]
            process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=said, stderr=said, text=True)
            running.callback(process.wait)
            running.callback(process.kill)
            return process

        yield type_in


async def test_simulator_and_daemon_restart_with_the_same_command(terminal: Terminal, tmp_path: Path) -> None:
    simulate, run = block("ingestor simulate"), block("INGESTOR_PROVIDER__URL")
    db = DbReader(f"sqlite:///{tmp_path / 'try' / 'ingestor.db'}")
    provider, daemon = terminal(simulate), terminal(run)
    await new_rows(db)
    kill(provider)
    terminal(simulate)
    await new_rows(db)
    kill(daemon)
    daemon = terminal(run)
    await new_rows(db)
    daemon.terminate()
    assert daemon.wait(20) == 0
    assert terminal(block(".venv/bin/ingestor audit")).wait(20) == 0
    db.assert_consistent()


async def new_rows(db: DbReader) -> None:
    """Wait until a value of the time after now is stored, which none that was stopped before can have done."""
    began = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"

    def stored() -> object:
        try:
            return db.scalar(f"SELECT count(*) FROM observations WHERE ts > '{began}'")
        except sqlite3.OperationalError:  # no database yet, or no tables
            return 0

    await until(stored, 60)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


# As a service.


def test_service_setup_steps_are_in_a_working_order(tmp_path: Path) -> None:
    """On a machine whose root is a folder. Stand-ins for pip and systemd note that they were asked."""
    if shutil.which("systemd-sysusers") is None:
        skip_missing("systemd-sysusers: install systemd")
    machine = a_machine(tmp_path)
    steps = [block(step) for step in ("service print", "credentials/api_key\n", "systemctl enable")]
    for step in steps:
        shell(
            re.sub(r"(?<=[ =])/(?=etc/|opt/|var/)", f"{machine}/", step),
            folder=TOP,
            typed=KEY,
            PATH=f"{tmp_path}/programs:{os.environ['PATH']}",
        )
    assert (machine / "etc/systemd/system/ingestor.service").read_text() == UNIT.read_text()
    assert "ingestor:x:" in (machine / "etc/passwd").read_text()
    assert (tmp_path / "asked").read_text().splitlines() == [
        "pip install -q .[postgres]",
        "systemctl daemon-reload",
        "systemctl enable --now ingestor",
    ]
    for wanted in ("INGESTOR_CONFIG=", "LoadCredential=api_key:"):
        path = next(line.partition(wanted)[2] for line in UNIT.read_text().splitlines() if wanted in line)
        assert (machine / path[1:]).is_file()
    assert stat.S_IMODE((machine / "etc/ingestor/credentials/api_key").stat().st_mode) == 0o600


def a_machine(folder: Path) -> Path:
    """Its root; the programs that act on a real machine are in ``programs`` beside it."""
    machine, programs = folder / "machine", folder / "programs"
    for place in (programs, machine / "opt/ingestor/bin", machine / "etc/systemd/system"):
        place.mkdir(parents=True)
    (machine / "opt/ingestor/bin/ingestor").symlink_to(PROGRAM)
    program(machine / "opt/ingestor/bin", "pip", f'echo "pip $*" >> {folder}/asked')
    program(programs, "python3", "")  # pip is there already
    program(programs, "sudo", 'exec "$@"')
    program(programs, "systemctl", f'echo "systemctl $*" >> {folder}/asked')
    program(programs, "systemd-sysusers", f'exec {shutil.which("systemd-sysusers")} --root={machine} "$@"')
    return machine
