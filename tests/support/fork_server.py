"""Start commands without the two seconds of imports, by forking a process that has already imported them.

The forked process runs the command's own ``main`` from its first line. So tests of many kills spend their time in the
recovery under test instead of in imports.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .daemon import CommandProcess, DaemonProcess

CLOSED = "closed"  # instead of the file of a standard stream


class ForkedProcess:
    """A forked command, with the methods of ``subprocess.Popen`` that ``CommandProcess`` uses."""

    def __init__(self, fork_server: ForkServer, pid: int) -> None:
        self._fork_server = fork_server
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        return self._exit_code(wait=False)

    def wait(self) -> int | None:
        return self._exit_code(wait=True)

    def _exit_code(self, *, wait: bool) -> int | None:
        if self.returncode is None:
            self.returncode = self._fork_server.request(wait_for=self.pid, block=wait)
        return self.returncode


class ForkServer:
    """The process that forks: ``with ForkServer() as fork_server``. At the end, its children are killed."""

    def __enter__(self) -> Self:
        environment = os.environ | {"PYTHONWARNINGS": "error"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(
        self,
        arguments: list[str],
        environment: dict[str, str],
        stdout: str | Path = CLOSED,
        stderr: str | Path = CLOSED,
        stdin: str | Path = os.devnull,
    ) -> ForkedProcess:
        """Run the command with these arguments and exactly this environment. A stream may be ``CLOSED``."""
        streams = {"stdin": str(stdin), "stdout": str(stdout), "stderr": str(stderr)}
        return ForkedProcess(self, self.request(arguments=arguments, environment=environment, **streams))

    def request(self, **parameters: Any) -> Any:
        """Send a request to the forking process, and return its response."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(parameters) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Forked(CommandProcess):
    fork_server: ForkServer

    @property
    def folder(self) -> Path:
        """The folder of the config and of the output."""
        return self._folder

    def start(self) -> None:
        arguments = [str(part) for part in self._command[1:]]
        output_files = self._output_file("stdout"), self._output_file("stderr")
        for file in output_files:
            file.touch()
        self._process = self.fork_server.start(arguments, self._environment, *output_files)  # type: ignore[assignment]


class ForkedCommand(_Forked):
    """A command, forked."""

    def __init__(self, fork_server: ForkServer, *arguments: str | Path, folder: Path, **environment: str) -> None:
        super().__init__(*arguments, folder=folder, **environment)
        self.fork_server = fork_server


class ForkedDaemon(_Forked, DaemonProcess):
    """``ingestor run``, forked."""

    def __init__(self, fork_server: ForkServer, config_file: Path, api_key: str, **environment: str) -> None:
        super().__init__(config_file, api_key, **environment)
        self.fork_server = fork_server
        self.config_file = config_file


# The process that forks.


def _serve() -> None:
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait_for" in request:
            response = _wait(request["wait_for"], 0 if request["block"] else os.WNOHANG)
            if response is not None:
                children.discard(request["wait_for"])
        else:
            response = os.fork()
            if not response:
                _run_command(**request)
                return
            children.add(response)
        print(json.dumps(response), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _wait(pid: int, options: int) -> int | None:
    found, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if found else None


def _run_command(arguments: list[str], environment: dict[str, str], **streams: str) -> None:
    from ingestor.cli import main

    _set_constants(environment.pop("TEST_CONSTANTS", "{}"))
    os.environ.clear()
    os.environ.update(environment)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding=environment.get("PYTHONIOENCODING", "utf-8"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if streams[name] == CLOSED:
            os.close(number)
            setattr(sys, name, None)
            continue
        handle = os.open(streams[name], os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        if handle != number:
            os.dup2(handle, number)
            os.close(handle)
    sys.argv = ["ingestor", *arguments]
    main()


def _set_constants(text: str) -> None:
    """Set ``{"ingestor.module.NAME": value}``, to shorten pauses that only protect a real provider."""
    for name, value in json.loads(text).items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)


if __name__ == "__main__":
    import psycopg  # noqa: F401

    import ingestor.daemon.service
    import ingestor.store.read.audit  # noqa: F401

    gc.freeze()  # otherwise every child copies and scans all objects at its end
    _serve()
