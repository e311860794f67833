"""The command tail: the last observations, and with -f those to come."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.output import (
    ConfigOption,
    Output,
    OutputOption,
    as_line,
    load_config,
    pause,
    safe,
    say,
    until_interrupted,
)

if TYPE_CHECKING:
    from ingestor.commands.follow import Follower

LOOK_SECONDS = 0.5  # between two looks for what was committed


def tail(
    ticker: Annotated[str, typer.Argument(help="Of this one only.", show_default="all")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is committed, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at first.")] = 10,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """The last observations as they arrived; with -f also those to come, restated values included."""
    from ingestor.commands.follow import Follower
    from ingestor.store.open_database import opened

    with until_interrupted(), opened(load_config(config).database.url.get_secret_value()) as engine:
        follower = Follower(engine, ticker)
        _print(follower.latest(limit), output)
        while follow:
            pause(LOOK_SECONDS)
            _print_new(follower, output)


def _print_new(follower: Follower, output: Output) -> None:
    from ingestor.errors import DatabaseUnavailable

    try:
        for seen in follower.poll():
            _print(seen.records, output)
            if seen.missing:
                print(
                    f"{seen.missing} values are not shown: they are old, and their payloads are not kept",
                    file=sys.stderr,
                )
    except DatabaseUnavailable as error:
        print(safe(f"the database is away, and is asked again: {error}"), file=sys.stderr)


def _print(records: list[dict[str, Any]], output: Output) -> None:
    if records:
        say("\n".join(as_line(one) if output is Output.JSON else safe(_observation(one)) for one in records))


def _observation(one: dict[str, Any]) -> str:
    who = f"{one['ticker']} {one['user_id']}".rstrip()
    said = f"{one['ts']:%Y-%m-%d %H:%M:%S}  {who:<8}  {one['feed']}  {one['metric']} {one['value']:.6g}"
    restated = f", revision {one['revision']}" if one["revision"] else ""
    return f"{said}  (received {one['received_at']:%H:%M:%S}{restated})"
