"""Install what the competing programs need, each in its own environment, once per machine (see build_cache.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.build_cache import build_once

# Pinned, because a comparison with the newest releases could not be repeated.
PYTHON = ("cryptofeed==2.4.1", "asyncpg==0.32.0", "python-socketio[client]==5.18.1", "psycopg[binary]==3.3.9")
NODE = {"socket.io-client": "4.8.4", "pg": "8.23.1"}
INSTALL_SECONDS = 600


def python() -> Path:
    """Return an interpreter with cryptofeed and the requirements of python-socketio's synchronous client."""
    return build_once("benchmark-python-" + PYTHON[0].partition("==")[2], _make_python) / "venv" / "bin" / "python"


def node() -> Path:
    """Return the folder that contains socket.io-client and pg."""
    return build_once("benchmark-node-" + NODE["pg"], _make_node)


def _make_python(folder: Path) -> None:
    unpinned = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    _run([sys.executable, "-m", "venv", folder / "venv"], unpinned)
    _run([folder / "venv" / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *PYTHON], unpinned)


def _make_node(folder: Path) -> None:
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": NODE}))
    quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
    _run(["npm", "install", *quiet, "--prefix", folder], dict(os.environ))


def _run(command: list[str | Path], environment: dict[str, str]) -> None:
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if completed.returncode:
        raise RuntimeError(f"{command[0]} failed: {completed.stderr.strip()[-300:]}")
