from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ingestor

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


def test_the_version_is_the_packages() -> None:
    assert ingestor_("--version").stdout == f"ingestor {ingestor.__version__}\n"


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
