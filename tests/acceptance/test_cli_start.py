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

# These take a second to import, and commands that only print do not need them.
HEAVY = {"socketio", "engineio", "sqlalchemy", "alembic", "aiohttp", "requests", "apscheduler"}

RUN = "import sys; sys.argv[0] = 'ingestor'; from ingestor.cli import main; main()"
REPORT = f"""
import atexit, sys
atexit.register(lambda: print(*sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr))
{RUN}
"""


def run_cli(*args: str, code: str = RUN, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command line of the tested package in a new process with a clean environment."""
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
def test_light_commands_load_no_heavy_libraries(args: list[str]) -> None:
    result = run_cli(*args, code=REPORT)
    assert result.stderr.splitlines()[-1:] == [""]


def test_version_shows_package_version_and_commit() -> None:
    revision = f" ({source_commit()})" if source_commit() else ""
    assert run_cli("--version").stdout == f"ingestor {ingestor.__version__}{revision}\n"


@pytest.mark.parametrize("group", [[], ["config"], ["service"], ["dashboards"], ["db"], ["dead-letters"], ["spool"]])
def test_help_shows_every_summary_in_full(group: list[str]) -> None:
    """At 80 columns, which is the width without a terminal."""
    summaries = run_cli(*group, "--help").stdout.partition("Commands:")[2]
    assert summaries and "..." not in summaries


def test_help_takes_less_than_300_ms_of_cpu_time() -> None:
    """Take the minimum of several runs, to exclude the load of other processes."""
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
def test_shell_completion(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    """Complete in bash, with the script that the command prints."""
    (tmp_path / "ingestor").symlink_to(COMMAND)
    script = (
        'source <(_INGESTOR_COMPLETE=source_bash ingestor); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        ' $(complete -p ingestor | sed -E "s/.* -F ([^ ]+) .*/\\1/") ingestor; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script, "bash", *typed], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.stdout.split(), result.stderr) == (offered, "")


@pytest.mark.parametrize("args", [[], ["frobnicate"], ["--frobnicate"], ["config", "show", "--output=xml"]])
def test_usage_error_exits_with_2(args: list[str]) -> None:
    result = run_cli(*args)
    assert result.returncode == 2
    assert ("Usage: ingestor" in result.stdout) is (not args)


def test_closed_stdout_ends_the_command_without_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        env = {"PYTHONPATH": str(Path(ingestor.__file__).parents[1])}
        result = subprocess.run(
            [sys.executable, "-c", RUN, "config", "schema"],
            stdout=closed,
            stderr=subprocess.PIPE,
            env=env,
            timeout=60,
        )
    assert (result.returncode, result.stderr) == (0, b"")
