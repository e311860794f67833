"""Options that several commands have, and what they name: the configuration, its database, a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.core import times
from ingestor.core.redaction import redactor
from ingestor.errors import BatchRejected, UnknownName

if TYPE_CHECKING:
    from ingestor.config import Config
    from ingestor.store.engine import Engine


class Output(StrEnum):
    """The format in which a command prints its result."""

    TEXT = "text"
    JSON = "json"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration file. Default: $INGESTOR_CONFIG, ./config.yaml, /etc/ingestor/config.yaml.",
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", help="Output format.")]

TIME_HELP = "A UTC time (2026-01-31, 2026-01-31T14:05, today, yesterday) or a duration before now (7d)."


def parse_time(text: str, now: datetime, option: str) -> datetime:
    """Return the UTC time that ``TIME_HELP`` describes. Raises typer.BadParameter, which names the ``option``."""
    from ingestor.config.units import parse_duration

    if text in (days := {"today": 0, "yesterday": 1}):
        return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days[text])
    try:
        return now - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass  # not a duration
    try:
        return times.parse_time(text).astimezone(UTC)
    except (ValueError, OverflowError):
        message = f'"{text}" is neither a duration (7d) nor a time (2026-01-31T14:05)'
        raise typer.BadParameter(message, param_hint=option) from None


def require_order(start: datetime | None, end: datetime | None, option: str) -> None:
    """Raise typer.BadParameter, which names the ``option``, if the range from ``start`` to ``end`` is empty."""
    if start and end and end <= start:
        message = f"the range from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC is empty; write a later end"
        raise typer.BadParameter(message, param_hint=option)


def load_config(path: Path | None, *, warn: bool = True) -> Config:
    """Load the configuration and register its secrets for masking. Print warnings to stderr. Raises ConfigError."""
    from ingestor.cli.output import echo_stderr
    from ingestor.config import list_secrets, load
    from ingestor.provider.catalog import feed_name, find_warnings

    config = load(path, feed_name=feed_name)
    for secret in list_secrets(config):
        redactor.add(secret)
    for warning in find_warnings(config) if warn else ():
        echo_stderr(str(warning))
    return config


@contextmanager
def open_database(config: Config, *, read_only: bool = True) -> Iterator[Engine]:
    """Open the database of the configuration. Raises DatabaseUnavailable, SchemaUnsupported for a pre-release."""
    from ingestor.store import migrate
    from ingestor.store import open_database as store

    with store.open_database(config.database.url.get_secret_value(), read_only=read_only) as engine:
        migrate.refuse_pre_release(migrate.current_revision(engine))
        try:
            yield engine
        except BatchRejected as error:  # of a query: the driver cannot pass an argument on
            raise UnknownName(f"an argument is nothing that the database can contain: {error}; correct it") from None


def parse_target_url(text: str) -> str:
    """Normalize the database URL of ``--into``, and register its passwords for masking. Raises typer.BadParameter."""
    from ingestor.config.urls import find_passwords, normalize_database_url

    try:
        url = normalize_database_url(text, Path.cwd())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--into") from None
    for password in find_passwords(url):
        redactor.add(password)
    return url
