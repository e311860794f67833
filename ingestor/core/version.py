"""The commit that this program was built from: from a file in the package, else from the git checkout around it.

The build runs this file on its own. It reads the repository's files and does not need git.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

COMMIT_FILE = "_commit"  # in the package; written by the build
COMMIT_DIGITS = 12


@cache
def source_commit() -> str:
    """Return the first twelve hexadecimal digits of the commit; "" if it is unknown."""
    package = Path(__file__).resolve().parent.parent
    try:
        return (package / COMMIT_FILE).read_text(encoding="ascii").strip()
    except OSError:
        return checkout_commit(package.parent)


def checkout_commit(top: Path) -> str:
    """Return the same for the repository with this top folder; "" if there is none or it cannot be read."""
    try:
        commit = _head(top / ".git")
    except (OSError, UnicodeDecodeError):
        return ""
    return commit[:COMMIT_DIGITS] if re.fullmatch(r"[0-9a-f]{40,64}", commit) else ""


def _head(git: Path) -> str:
    if git.is_file():  # a worktree: the file names its git folder
        git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    ref = head.removeprefix("ref: ")
    commondir = git / "commondir"
    common = git / commondir.read_text(encoding="utf-8").strip() if commondir.exists() else git
    file = common / ref
    return file.read_text(encoding="utf-8").strip() if file.exists() else _packed_ref(common / "packed-refs", ref)


def _packed_ref(file: Path, ref: str) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.partition(" ")[0] for line in lines if line.endswith(f" {ref}")), "")
