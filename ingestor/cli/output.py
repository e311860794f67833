"""What every command shares: the options that recur, the configuration, and how results reach stdout."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.core.redaction import redactor
from ingestor.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from ingestor.config import Config

PACKAGE = Path(__file__).parent.parent


class Output(StrEnum):
    """How a command shows what it has read."""

    TEXT = "text"
    JSON = "json"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Default: $INGESTOR_CONFIG, ./config.yaml, /etc/ingestor/config.yaml",
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", help="For people, or for programs.")]

MOMENT = "A duration before now, as 7d, or a time in UTC, as 2026-01-31 or 2026-01-31T14:05."


def moment(text: str, now: datetime, option: str) -> datetime:
    """What ``MOMENT`` says, UTC. A time may have another zone, if it names it."""
    from ingestor.config.units import parse_duration

    try:
        return now - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass  # a time, then
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        message = f'"{text}" is neither a duration (7d) nor a time (2026-01-31T14:05)'
        raise typer.BadParameter(message, param_hint=option) from None


def say(text: str) -> None:
    """Print data, without secrets. Ends the command in peace if whoever read it has seen enough."""
    try:
        print(redactor.scrub(text), flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


@contextmanager
def until_interrupted() -> Iterator[None]:
    """For what goes on by itself: Ctrl-C is how it ends, and is no failure."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit from None


def pause(seconds: float) -> None:
    """Wait. Ends the command in peace if meanwhile nobody is there any more to read what it says."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # its end is told in any case
    if stdout.poll(seconds * 1000):
        raise typer.Exit


def safe(value: object) -> str:
    """One line of text from outside, which cannot move the cursor, turn the line round or begin another."""
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in str(value))


def load_config(path: Path | None) -> Config:
    """The configuration, its secrets known to the redactor; what may be a mistake is said on stderr."""
    from ingestor.config import load, secrets_of
    from ingestor.provider.catalog import feed_name

    config = load(path, feed_name=feed_name)
    for secret in secrets_of(config):
        redactor.add(secret)
    _warn_of_unknown_endpoints(config)
    return config


def _warn_of_unknown_endpoints(config: Config) -> None:
    from ingestor.provider.catalog import unknown_path_warning

    places = {one.where: one for one in config.subscriptions}  # a list of tickers stands at one place
    for where, one in places.items():
        if warning := unknown_path_warning(one.path):
            print(ConfigProblem(where, f"{one.entry}.path", warning), file=sys.stderr)


def print_as(output: Output, data: Any, text: Callable[[], str]) -> None:
    say(as_json(data) if output is Output.JSON else text())


def as_json(data: Any) -> str:
    """For programs, and for eyes: what a terminal would obey is escaped as JSON allows. Times are ISO 8601."""
    return "\n".join(map(safe, json.dumps(data, indent=2, ensure_ascii=False, default=_told).split("\n")))


def as_line(data: Any) -> str:
    """The same on one line."""
    return safe(json.dumps(data, ensure_ascii=False, default=_told))


def _told(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def shipped(name: str) -> str:
    """The text of a file that ships with us: ``_name`` in the package, else ``name`` in a checkout."""
    packaged = PACKAGE / f"_{name}"
    return (packaged if packaged.exists() else PACKAGE.parent / name).read_text(encoding="utf-8")


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, or says this already. Raises ConfigError if it says else, or cannot be."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
            return
        message = "is there already, and is left as it is; remove it, or name another file"
    except OSError as error:
        message = f"cannot be written ({os.strerror(error.errno or 0)}); name a file in a folder of yours"
    else:
        return
    raise ConfigError([ConfigProblem(str(path), "", message)])
