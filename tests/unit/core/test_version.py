"""Reading the commit from a real repository, in each form in which git stores it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ingestor.core.version import COMMIT_DIGITS, checkout_commit
from tests.support.requirements import skip_missing


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        skip_missing("git: install it")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_commit_is_read_from_branch_pack_worktree_and_detached(repository: Path, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")[:COMMIT_DIGITS]
    assert checkout_commit(repository) == first
    git(repository, "pack-refs", "--all")
    assert not (repository / ".git/refs/heads/main").exists()
    assert checkout_commit(repository) == first
    other = tmp_path / "other"
    git(repository, "worktree", "add", "-q", str(other), "-b", "topic/b")
    git(other, "commit", "-q", "--allow-empty", "-m", "two")
    second = git(other, "rev-parse", "HEAD")[:COMMIT_DIGITS]
    assert (checkout_commit(other), checkout_commit(repository)) == (second, first)
    git(other, "pack-refs", "--all")
    assert checkout_commit(other) == second
    git(repository, "checkout", "-q", "--detach", second)
    assert checkout_commit(repository) == second != first


@pytest.mark.parametrize("head", [None, "", "ref: refs/heads/none", "<html>", "ref: ../../../secret", b"\xff"])
def test_commit_is_empty_if_repository_cannot_be_read(tmp_path: Path, head: str | bytes | None) -> None:
    if head is not None:
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git" / "HEAD").write_bytes(head.encode() if isinstance(head, str) else head)
    assert checkout_commit(tmp_path) == ""
