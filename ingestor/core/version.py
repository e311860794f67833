"""Which commit of its repository this program is: written into the package when that was built, else the checkout's.

Runs by itself too, in the build. Needs no git: a checkout is read as it lies there.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

COMMIT_FILE = "_commit"  # of the file in the package
COMMIT_DIGITS = 12


@cache
def source_commit() -> str:
    """Its first twelve hexadecimal digits; empty where nobody knows."""
    package = Path(__file__).resolve().parent.parent
    try:
        return (package / COMMIT_FILE).read_text(encoding="ascii").strip()
    except OSError:
        return checkout_commit(package.parent)


def checkout_commit(top: Path) -> str:
    """The same of the repository whose files begin in this folder; empty if there is none that can be read."""
    try:
        found = _head(top / ".git")
    except (OSError, UnicodeDecodeError):
        return ""
    return found[:COMMIT_DIGITS] if re.fullmatch(r"[0-9a-f]{40,64}", found) else ""


def _head(git: Path) -> str:
    if git.is_file():  # of a worktree: it says where its own folder is
        git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    shared = git / "commondir"
    common = git / shared.read_text(encoding="utf-8").strip() if shared.exists() else git
    loose = common / name
    return loose.read_text(encoding="utf-8").strip() if loose.exists() else _packed(common / "packed-refs", name)


def _packed(file: Path, name: str) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.partition(" ")[0] for line in lines if line.endswith(f" {name}")), "")
