"""A real file in a real folder for each test of the config room."""

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
    """The folder of config.yaml, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    """Write the text as config.yaml and load it under an environment, by default an empty one."""

    def load_text(text: str, env: Mapping[str, str] | None = None, *, mode: int = 0o644) -> Config:
        file = folder / "config.yaml"
        file.write_text(text)
        file.chmod(mode)
        return load(None, env or {})

    return load_text


@pytest.fixture
def refused(loaded: Loaded) -> Refused:
    """The problems of a configuration that must not load, a line each."""

    def problems(*args: object, **more: object) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            loaded(*args, **more)
        assert str(raised.value).splitlines() == [str(problem) for problem in raised.value.problems]
        return str(raised.value).splitlines()

    return problems
