"""Command tail."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config, open_database
from ingestor.cli.output import echo, echo_stderr, exit_on_interrupt, printable, sleep_until_closed, to_json_line

if TYPE_CHECKING:
    from ingestor.commands.tail import Follower

POLL_SECONDS = 0.5


def tail(
    ticker: Annotated[str, typer.Argument(help="Only this ticker.", show_default="all")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new observations until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Number of observations to start with.")] = 10,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the newest observations; with -f, also new ones.

    Prints observations in the order in which they were received, including restated values.

    \b
    Example:
      ingestor tail -f AAPL
    """
    from ingestor.commands.tail import Follower

    with exit_on_interrupt(), open_database(load_config(config)) as engine:
        follower = Follower(engine, ticker)
        _print(follower.latest(limit), output)
        while follow:
            sleep_until_closed(POLL_SECONDS)
            _print_new(follower, output)


def _print_new(follower: Follower, output: Output) -> None:
    from ingestor.errors import DatabaseUnavailable

    try:
        for new in follower.poll():
            _print(new.records, output)
            if new.missing:
                echo_stderr(f"{new.missing} restated values are not shown: their payloads are no longer stored")
    except DatabaseUnavailable as error:
        echo_stderr(f"database unavailable, retrying: {error}")


def _print(records: list[dict[str, Any]], output: Output) -> None:
    format_ = to_json_line if output is Output.JSON else _format_observation
    if records:
        echo("\n".join(map(format_, records)))


def _format_observation(record: dict[str, Any]) -> str:
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    return fit(record, width)


def fit(record: dict[str, Any], width: int | None) -> str:
    """Format as one line of at most ``width`` characters; what is left out first matters least, the value most."""
    owner = f"{record['ticker']} {record['user_id']}".rstrip()
    value = f"{record['feed']}  {record['metric']} {record['value']:.6g}"
    restated = f", revision {record['revision']}" if record["revision"] else ""
    received = f"(received {record['received_at']:%H:%M:%S}{restated})"
    short = f"{record['metric']} {record['value']:.6g}"
    candidates = (
        f"{record['ts']:%Y-%m-%d %H:%M:%S}  {owner:<8}  {value}  {received}",
        f"{record['ts']:%Y-%m-%d %H:%M:%S}  {owner:<8}  {value}",
        f"{record['ts']:%m-%d %H:%M}  {owner:<8}  {short}",
        f"{record['ts']:%H:%M} {owner} {record['value']:.6g}",
    )
    lines = list(map(printable, candidates))
    return next((line for line in lines if width is None or len(line) <= width), lines[-1][:width])
