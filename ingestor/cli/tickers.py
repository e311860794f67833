"""Commands add, remove and reload."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config
from ingestor.cli.output import echo, print_result, printable

if TYPE_CHECKING:
    from ingestor.config import Config

EditFunction: TypeAlias = Callable[[str, str, str, Sequence[str]], tuple[str, list[str]]]
TickersArgument = Annotated[
    list[str], typer.Argument(help="Tickers as the provider spells them: TSLA ON 6E_F.", metavar="TICKER...")
]
PathOption = Annotated[str, typer.Option("--path", help="Endpoint. Required if the file has several.")]
ReloadOption = Annotated[bool, typer.Option("--reload", help="Make the running daemon reload the file.")]


def add(
    tickers: TickersArgument, path: PathOption = "", reload: ReloadOption = False, config: ConfigOption = None
) -> None:
    """Add tickers to the configuration file.

    Keeps the comments and layout of the file, and prints the changed lines.

    \b
    Example:
      ingestor add TSLA NVDA --reload
    """
    from ingestor.config.edit import add_tickers as edit

    _change(edit, tickers, path, config, reload, changed="added", unchanged="already subscribed")


def remove(
    tickers: TickersArgument, path: PathOption = "", reload: ReloadOption = False, config: ConfigOption = None
) -> None:
    """Remove tickers from the configuration file.

    Keeps the comments and layout of the file, and prints the changed lines. Stored data is kept.

    \b
    Example:
      ingestor remove TSLA --reload
    """
    from ingestor.config.edit import remove_tickers as edit

    _change(edit, tickers, path, config, reload, changed="removed", unchanged="not in the file")


def reload(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Make the running daemon reload its configuration.

    Prints what the daemon changed, and which settings require a restart. If the configuration is invalid, the daemon
    keeps the current one.

    \b
    Example:
      ingestor reload
    """
    response = _request_reload(load_config(config))
    print_result(output, response, lambda: _format_response(response))


def _change(
    edit: EditFunction,
    tickers: list[str],
    path: str,
    config: Path | None,
    reload: bool,
    *,
    changed: str,
    unchanged: str,
) -> None:
    from ingestor.config.rewrite import rewrite_file
    from ingestor.provider.catalog import feed_name, unknown_path_warning

    endpoint = _validate(path or _only_path(load_config(config)), tickers)
    edited: list[str] = []

    def edit_text(text: str, name: str) -> str:
        text, edited[:] = edit(text, name, endpoint, tickers)
        return text

    new_config, before, after = rewrite_file(edit_text, config, feed_name=feed_name)
    if edited and (warning := unknown_path_warning(endpoint)):
        print(warning, file=sys.stderr)
    outcomes = [f"{ticker}: {changed if ticker in edited else unchanged}" for ticker in dict.fromkeys(tickers)]
    lines = [f"{new_config.source}: {endpoint}", *_changed_lines(before, after), *outcomes]
    echo("\n".join(map(printable, lines)))
    if reload:
        echo(_format_response(_request_reload(new_config)))


def _only_path(config: Config) -> str:
    paths = sorted({subscription.path for subscription in config.subscriptions})
    if len(paths) > 1:
        raise typer.BadParameter(f"the file has several endpoints; name one: {', '.join(paths)}", param_hint="--path")
    return paths[0]


def _validate(path: str, tickers: list[str]) -> str:
    """Return the normalized path. Raises typer.BadParameter."""
    from ingestor.config import validators
    from ingestor.config.subscriptions import validate_endpoint

    try:
        for ticker in tickers:
            validators.ticker(ticker)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TICKER") from None
    try:
        return validate_endpoint(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--path") from None


def _changed_lines(before: str, after: str) -> Iterator[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return (line for line in list(lines)[2:] if not line.startswith("@@"))


def _request_reload(config: Config) -> dict[str, Any]:
    """Return the daemon's response. Raises ControlError if the daemon rejects the configuration."""
    from ingestor.daemon import control_socket

    unreachable = "no running daemon could be reached; the change applies at the next start"
    return control_socket.send_request(config.spool.path, "reload") or {"daemon": unreachable}


def _format_response(response: dict[str, Any]) -> str:
    lines = []
    for name, value in response.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if text:
            lines.append(printable(f"{name.replace('_', ' ')}: {text}"))
    return "\n".join(lines)
