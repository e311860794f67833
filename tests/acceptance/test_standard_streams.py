"""Every command with standard streams that are closed, full, or lack the characters that it prints."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest

from ingestor.daemon.control_socket import send_request

from ..support.fork_server import CLOSED, ForkServer
from ..support.postgres_server import free_port
from .conftest import KEY, SharedDaemon

COMMANDS = (
    ["--help"],
    ["--version"],
    ["check"],
    ["audit"],
    ["coverage"],
    ["status"],
    ["tail"],
    ["export", "--feed", "crowd-sentiment"],
    ["dead-letters", "list"],
    ["db", "current"],
    ["config", "show"],
    ["service", "print"],
    ["reload"],
    ["frobnicate"],
)
NO_SPACE = os.strerror(errno.ENOSPC)
WITHOUT_CONFIG = {"--help", "--version", "print", "frobnicate"}


class Shell:
    """Runs commands with the configuration of the shared daemon."""

    def __init__(self, shared: SharedDaemon, folder: Path) -> None:
        self._shared, self._folder = shared, folder

    def run(self, arguments: list[str], *, encoding: str = "utf-8", **streams: str | Path) -> tuple[int, str, str]:
        """Return the exit code, and what arrived on stdout and stderr."""
        if arguments[-1] not in WITHOUT_CONFIG:
            arguments = [*arguments, "--config", str(self._shared.config)]
        environment = {"PATH": os.environ["PATH"], "INGESTOR_PROVIDER__API_KEY": KEY, "PYTHONIOENCODING": encoding}
        files = {name: self._folder / f"{name} {len(list(self._folder.iterdir()))}" for name in ("stdout", "stderr")}
        for file in files.values():
            file.touch()
        process = self._shared.fork_server.start(arguments, environment, **{**files, **streams})
        code = process.wait()
        assert code is not None
        return code, *(file.read_text(encoding) for file in files.values())  # type: ignore[return-value]


@pytest.fixture
def shell(shared_daemon: SharedDaemon, tmp_path: Path) -> Shell:
    return Shell(shared_daemon, tmp_path)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_prints_something_readable_or_fails_in_one_sentence(shell: Shell, arguments: list[str]) -> None:
    code, output, errors = shell.run(arguments)
    assert (code, "Traceback" in errors) == (2 if arguments == ["frobnicate"] else 0, False), errors

    readable = shell.run(arguments, encoding="ascii", stdin=CLOSED, stderr=CLOSED)
    assert (readable[0], bool(readable[1])) == (code, bool(output))

    failed = shell.run(arguments, stdout="/dev/full")
    if output:
        assert (failed[0], failed[2].removeprefix(errors)) == (74, f"stdout cannot be written: {NO_SPACE}\n")
    else:
        assert (failed[0], failed[2]) == (code, errors)


def test_command_reports_that_stdout_is_closed(shell: Shell) -> None:
    code, _, errors = shell.run(["audit"], stdout=CLOSED)
    assert (code, errors) == (74, "stdout cannot be written: Bad file descriptor\n")


def test_daemon_without_standard_streams_runs_without_log(
    shared_daemon: SharedDaemon, fork_server: ForkServer, tmp_path: Path
) -> None:
    """No file that it opens may get the number of a stream: the log would be written into it."""
    config = tmp_path / "config.yaml"
    http = {"listen": f"127.0.0.1:{free_port()}"}
    config.write_text(json.dumps(json.loads(shared_daemon.config.read_text()) | {"http": http, "database": {}}))
    arguments = ["run", "--config", str(config)]
    environment = {"INGESTOR_PROVIDER__API_KEY": KEY, "PATH": os.environ["PATH"]}
    daemon = fork_server.start(arguments, environment, stdout=CLOSED, stderr=CLOSED, stdin=CLOSED)
    deadline = time.monotonic() + 20
    while send_request(tmp_path / "spool", "status") is None:
        assert daemon.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert {Path(f"/proc/{daemon.pid}/fd/{number}").readlink() for number in range(3)} == {Path(os.devnull)}
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait() == 0


def test_coverage_draws_its_strip_with_ascii(shell: Shell) -> None:
    output = shell.run(["coverage"], encoding="ascii")[1]
    assert "right: the last 24 hours: # covered  - partly covered  x not covered  . not subscribed" in output
    assert "\\u" not in output


def test_error_is_reported_by_its_code_if_stderr_is_full(shell: Shell) -> None:
    assert shell.run(["audit", "--frobnicate"], stderr="/dev/full")[0] == 2
    assert shell.run(["export", "--feed", "x"], stderr="/dev/full")[0] == 2
