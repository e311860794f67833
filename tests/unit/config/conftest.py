"""Real files in a temporary folder for the tests of the config package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ingestor.config import Config, load
from ingestor.errors import ConfigError

ONE = "subscriptions: [{path: /real-time/crowd-sentiment}]\n"

Loaded = Callable[..., Config]
Refused = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of config.yaml, which is also the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    """Write a text as config.yaml and load it, by default with an empty environment."""

    def load_text(text: str, env: Mapping[str, str] | None = None, *, mode: int = 0o644) -> Config:
        file = folder / "config.yaml"
        file.write_text(text)
        file.chmod(mode)
        return load(None, env or {})

    return load_text


@pytest.fixture
def refused(loaded: Loaded) -> Refused:
    """Return the problems of an invalid configuration, one per line."""

    def problems(*args: object, **more: object) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            loaded(*args, **more)
        assert str(raised.value).splitlines() == [str(problem) for problem in raised.value.problems]
        return str(raised.value).splitlines()

    return problems
