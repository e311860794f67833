"""Rules that hold for every command, so that a new one cannot forget them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ingestor.cli import app


def _paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _paths(child, (*path, name))


COMMANDS = list(_paths(typer.main.get_command(app)))
every_command = pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])


@every_command
def test_short_help_option_shows_same_text_as_long_one(path: tuple[str, ...], command: Any) -> None:
    short, long = (CliRunner().invoke(app, [*path, option]) for option in ("-h", "--help"))

    assert short.exit_code == 0
    assert "Usage:" in short.output
    assert short.output == long.output


@every_command
def test_option_config_has_short_form(path: tuple[str, ...], command: Any) -> None:
    options = [parameter.opts for parameter in command.params]

    assert all("-c" in names for names in options if "--config" in names)
