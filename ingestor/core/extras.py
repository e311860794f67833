"""The optional libraries, and the command that installs them into the environment at hand."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata, util
from typing import Literal, TypeAlias

from ingestor.errors import MissingExtra

DISTRIBUTION = "market-prophit-ingestor"
Extra: TypeAlias = Literal["postgres", "export"]
_LIBRARIES: dict[Extra, str] = {"postgres": "psycopg[binary]", "export": "pyarrow"}


def missing_extra(extra: Extra, purpose: str) -> MissingExtra:
    """Return the error that says for what the extra's library is needed, and how to install it here."""
    library = _LIBRARIES[extra].partition("[")[0]
    return MissingExtra(f"{purpose} needs {library}, which is not installed; run: {install_command(extra)}")


def install_command(extra: Extra) -> str:
    """Return a shell command. It names the libraries, not this program: that may come from a checkout or a file."""
    pip = [sys.executable, "-m", "pip", "install"]
    if not util.find_spec("pip"):  # an environment of uv
        pip = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*pip, *_requirements(extra)])


def _requirements(extra: Extra) -> list[str]:
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a folder of sources
        required = []
    marked = [text.partition(";") for text in required]
    found = [text.strip() for text, _, marker in marked if marker.replace("'", '"').strip() == f'extra == "{extra}"']
    return found or [_LIBRARIES[extra]]
