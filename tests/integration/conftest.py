"""Commands in the test's own process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ingestor.cli import main


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A command that has ended."""

    code: int
    out: str
    err: str


Command = Callable[..., CommandResult]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``ingestor`` with these arguments."""
    for name in os.environ:
        if name.startswith("INGESTOR_") and not name.startswith("INGESTOR_TEST_"):
            monkeypatch.delenv(name)

    def run(*arguments: str | Path) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["ingestor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return CommandResult(int(ended.value.code or 0), output.out, output.err)

    return run


@pytest.fixture
def write_config_for(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration for a database, by default a SQLite file beside it."""

    def write(database_url: str = "sqlite:///ingestor.db", **sections: Any) -> Path:
        document = {"database": {"url": database_url}, "subscriptions": [{"path": "crowd-sentiment"}], **sections}
        file = tmp_path / "config.yaml"
        file.write_text(json.dumps(document))
        file.chmod(0o600)
        return file

    return write


# A database that is not there, or is none.
