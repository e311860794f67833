"""Daemons without the two seconds that Python takes to import them: forked from a process that has done so already.

What runs is the command's own ``main`` in a process of its own, from its first line on: only the imports are behind it.
So a test of many kills spends its time in the recovery that is killed, and not before it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .daemon import CommandProcess, DaemonProcess


class ForkedProcess:
    """A forked command, as far as ``CommandProcess`` asks: the part of ``subprocess.Popen`` that it uses."""

    def __init__(self, fork_server: ForkServer, pid: int) -> None:
        self._fork_server = fork_server
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        return self._ask(wait=False)

    def wait(self) -> int | None:
        return self._ask(wait=True)

    def _ask(self, *, wait: bool) -> int | None:
        if self.returncode is None:
            self.returncode = self._fork_server.ask(wait_for=self.pid, hang=wait)
        return self.returncode


class ForkServer:
    """The process that forks. ``with ForkServer() as fork_server``; at the end, its children are killed."""

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

    def start(self, arguments: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> ForkedProcess:
        """Run the command with these arguments and this whole environment."""
        return ForkedProcess(
            self, self.ask(arguments=arguments, environment=environment, stdout=str(stdout), stderr=str(stderr))
        )

    def ask(self, **wish: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Forked(CommandProcess):
    fork_server: ForkServer

    @property
    def folder(self) -> Path:
        """Where its config and what it said are."""
        return self._folder

    def start(self) -> None:
        arguments = [str(part) for part in self._command[1:]]
        said = self._said("stdout"), self._said("stderr")
        for file in said:
            file.touch()
        self._process = self.fork_server.start(arguments, self._environment, *said)  # type: ignore[assignment]


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
        wish = json.loads(line)
        if "wait_for" in wish:
            answer = _wait(wish["wait_for"], 0 if wish["hang"] else os.WNOHANG)
            if answer is not None:
                children.discard(wish["wait_for"])
        else:
            answer = os.fork()
            if not answer:
                _become(**wish)
                return
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _wait(pid: int, options: int) -> int | None:
    found, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if found else None


def _become(arguments: list[str], environment: dict[str, str], stdout: str, stderr: str) -> None:
    from ingestor.cli import main

    _set_constants(environment.pop("TEST_CONSTANTS", "{}"))
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((0, os.devnull), (1, stdout), (2, stderr)):
        handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = ["ingestor", *arguments]
    main()


def _set_constants(text: str) -> None:
    """``{"ingestor.module.NAME": value}``: a pause that is polite to a provider is no use before a server of ours."""
    for name, value in json.loads(text).items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)


if __name__ == "__main__":
    import psycopg  # noqa: F401

    import ingestor.daemon.service
    import ingestor.store.read.audit  # noqa: F401

    gc.freeze()  # else every child copies and walks all of it again when it ends
    _serve()
