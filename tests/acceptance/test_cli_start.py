from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ingestor
from ingestor.core.version import source_commit

from ..support.daemon import COMMAND

# What costs a second to import, and no command that only speaks needs.
HEAVY = {"socketio", "engineio", "sqlalchemy", "alembic", "aiohttp", "requests", "apscheduler"}

RUN = "import sys; sys.argv[0] = 'ingestor'; from ingestor.cli import main; main()"
REPORT = f"""
import atexit, sys
atexit.register(lambda: print(*sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr))
{RUN}
"""


def ingestor_(*args: str, code: str = RUN, **more: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process and an environment of its own, of the package that is tested."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(ingestor.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        **more,
    )


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["config", "--help"],
        ["config", "schema"],
        ["service", "print"],
        ["frobnicate"],
    ],
)
def test_what_needs_no_database_or_socket_loads_neither(args: list[str]) -> None:
    ended = ingestor_(*args, code=REPORT)
    assert ended.stderr.splitlines()[-1:] == [""]


def test_the_version_is_the_packages_with_its_commit() -> None:
    known = f" ({source_commit()})" if source_commit() else ""
    assert ingestor_("--version").stdout == f"ingestor {ingestor.__version__}{known}\n"


def test_help_is_there_in_less_than_three_tenths_of_a_second() -> None:
    """Of the processor's time, the shortest of some: what else the machine does is not ours."""
    assert min(processor_seconds(COMMAND, "--help") for _ in range(5)) < 0.3


def processor_seconds(*command: str | Path, stdout: Any = subprocess.DEVNULL, **more: Any) -> float:
    process = subprocess.Popen(command, stdout=stdout, **more)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ingestor", "sta"], ["status"]),
        (["ingestor", "dashboards", ""], ["export"]),
        (["ingestor", "tail", "--f"], ["--follow"]),
    ],
)
def test_a_shell_completes_commands_and_options(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    """In bash itself, with what the command gives it to load."""
    (tmp_path / "ingestor").symlink_to(COMMAND)
    script = (
        'source <(_INGESTOR_COMPLETE=source_bash ingestor); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        ' $(complete -p ingestor | sed -E "s/.* -F ([^ ]+) .*/\\1/") ingestor; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-c", script, "bash", *typed], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout.split(), ended.stderr) == (offered, "")


@pytest.mark.parametrize("args", [[], ["frobnicate"], ["--frobnicate"], ["config", "show", "--output=xml"]])
def test_wrong_usage_ends_with_2_and_only_help_on_stdout(args: list[str]) -> None:
    ended = ingestor_(*args)
    assert ended.returncode == 2
    assert ("Usage: ingestor" in ended.stdout) is (not args)


def test_a_reader_that_has_seen_enough_ends_the_command_in_peace() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        env = {"PYTHONPATH": str(Path(ingestor.__file__).parents[1])}
        ended = subprocess.run(
            [sys.executable, "-c", RUN, "config", "schema"],
            stdout=closed,
            stderr=subprocess.PIPE,
            env=env,
            timeout=60,
        )
    assert (ended.returncode, ended.stderr) == (0, b"")
