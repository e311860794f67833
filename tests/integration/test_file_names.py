"""Folders with any name: every opener opens the database and the spool that were named."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from tests.integration.conftest import Command

NAMES = ["what?x=1", "100%25", "[two words] #b q'\"&;$", "ümläut", "file:x", "\udcff"]
KINDS = ["config folder", "state folder", "URL"]


def write_config(folder: Path, url: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(
        json.dumps({"database": {"url": url}, "subscriptions": [{"path": "crowd-sentiment"}]}), encoding="utf-8"
    )
    file.chmod(0o600)
    return file


def files_below(folder: Path) -> set[Path]:
    return {Path(place, name).relative_to(folder) for place, _, names in os.walk(folder) for name in names}


# A colon separates the folders in STATE_DIRECTORY, and YAML cannot contain a byte that is not UTF-8.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in NAMES
        for kind in KINDS
        if (name, kind) not in {("file:x", KINDS[1]), ("\udcff", KINDS[2])}
    ],
    ids=ascii,
)
def test_daemon_and_readers_open_the_file_that_was_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    named = tmp_path / name
    named.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if kind == "URL":
        config = write_config(tmp_path / "elsewhere", f"sqlite:///{named}/data.db")
    else:
        config = write_config(named if kind == "config folder" else tmp_path / "elsewhere", "sqlite:///data.db")
    if kind == "state folder":
        monkeypatch.setenv("STATE_DIRECTORY", str(named))
    # The second does what the daemon does: it takes the locks, opens the spool, and writes.
    for arguments in (["db", "upgrade"], ["dead-letters", "retry"], ["audit"], ["db", "current"], ["config", "show"]):
        result = command(*arguments, "--config", config)
        assert (result.code, result.err) == (0, "")
    assert sqlite3.connect(named / "data.db").execute("SELECT count(*) FROM instances").fetchone() == (1,)
    spool = (tmp_path / "elsewhere" if kind == "URL" else named).relative_to(tmp_path) / "spool"
    database = Path(name) / "data.db"
    expected = {database, database.with_name("data.db.lock"), config.relative_to(tmp_path)}
    files = {file for file in files_below(tmp_path) if not file.name.endswith(("-wal", "-shm"))}
    assert {file for file in files if file.parent != spool} == expected
    assert spool / "spool.db" in files
