"""What the others need, in environments of their own, made once on a machine (see tests/support/cache.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.build_cache import build_once

# The newest at the time of writing: a comparison with whatever is newest would not be the same one twice.
PYTHON = ("cryptofeed==2.4.1", "asyncpg==0.32.0", "python-socketio[client]==5.18.1", "psycopg[binary]==3.3.9")
NODE = {"socket.io-client": "4.8.4", "pg": "8.23.1"}
INSTALL_SECONDS = 600


def python() -> Path:
    """An interpreter with cryptofeed, and with what python-socketio's synchronous client needs."""
    return build_once("benchmark-python-" + PYTHON[0].partition("==")[2], _make_python) / "venv" / "bin" / "python"


def node() -> Path:
    """The folder that socket.io-client and pg are installed in."""
    return build_once("benchmark-node-" + NODE["pg"], _make_node)


def _make_python(folder: Path) -> None:
    unpinned = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    _run([sys.executable, "-m", "venv", folder / "venv"], unpinned)
    _run([folder / "venv" / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *PYTHON], unpinned)


def _make_node(folder: Path) -> None:
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": NODE}))
    quietly = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
    _run(["npm", "install", *quietly, "--prefix", folder], dict(os.environ))


def _run(command: list[str | Path], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
