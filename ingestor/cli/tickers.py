"""Commands that change what is collected: add, remove, reload."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.output import ConfigOption, Output, OutputOption, load_config, print_as, safe, say

if TYPE_CHECKING:
    from ingestor.config import Config

TickersArgument = Annotated[list[str], typer.Argument(help="As the provider spells them: TSLA ON 6E_F")]
PathOption = Annotated[str, typer.Option("--path", help="Endpoint; may be left out where the file has only one.")]
ReloadOption = Annotated[bool, typer.Option("--reload", help="Have the running daemon read the file at once.")]


def add(
    tickers: TickersArgument, path: PathOption = "", reload: ReloadOption = False, config: ConfigOption = None
) -> None:
    """Collect these tickers too: writes them into the configuration, whose comments and layout stay."""
    from ingestor.config.edit import add as edit

    changed = _change(edit, tickers, path, config, done="added", else_="is asked for already")
    if reload:
        say("\n".join(_told(_reloaded(changed))))


def remove(
    tickers: TickersArgument, path: PathOption = "", reload: ReloadOption = False, config: ConfigOption = None
) -> None:
    """Collect these tickers no more: takes them out of the configuration. What was collected stays."""
    from ingestor.config.edit import remove as edit

    changed = _change(edit, tickers, path, config, done="removed", else_="is not named there")
    if reload:
        say("\n".join(_told(_reloaded(changed))))


def reload(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Have the running daemon read its configuration again, and say what came of it."""
    answer = _reloaded(load_config(config))
    print_as(output, answer, lambda: "\n".join(_told(answer)))


def _change(
    edit: Callable[[str, str, str, Sequence[str]], tuple[str, list[str]]],
    tickers: list[str],
    path: str,
    config: Path | None,
    *,
    done: str,
    else_: str,
) -> Config:
    from ingestor.config.rewrite import rewrite
    from ingestor.provider.catalog import feed_name, unknown_path_warning

    place = _checked(path or _only_path(load_config(config)), tickers)
    changed: list[str] = []

    def edited(text: str, name: str) -> str:
        text, changed[:] = edit(text, name, place, tickers)
        return text

    understood, before, after = rewrite(edited, config, feed_name=feed_name)
    if changed and (warning := unknown_path_warning(place)):
        print(warning, file=sys.stderr)
    said = [f"{ticker}: {done}" if ticker in changed else f"{ticker}: {else_}" for ticker in dict.fromkeys(tickers)]
    say("\n".join(map(safe, [f"{understood.source}: {place}", *_difference(before, after), *said])))
    return understood


def _only_path(config: Config) -> str:
    paths = sorted({one.path for one in config.subscriptions})
    if len(paths) > 1:
        raise typer.BadParameter(f"say which: {', '.join(paths)}", param_hint="--path")
    return paths[0]


def _checked(path: str, tickers: list[str]) -> str:
    from ingestor.config.subscriptions import endpoint
    from ingestor.config.validators import ticker as name

    try:
        for one in tickers:
            name(one)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TICKER") from None
    try:
        return endpoint(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--path") from None


def _difference(before: str, after: str) -> Iterator[str]:
    """The lines that went and came."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return (line for line in list(lines)[2:] if not line.startswith("@@"))


def _reloaded(config: Config) -> dict[str, Any]:
    """What the daemon answers. Raises ControlError with its own words, if it keeps its configuration."""
    from ingestor.daemon import control

    nobody = "none runs here that this user may ask; the next start reads the file"
    return control.send_request(config.spool.path, "reload") or {"daemon": nobody}


def _told(answer: dict[str, Any]) -> Iterator[str]:
    for name, value in answer.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        if shown != "":
            yield safe(f"{name.replace('_', ' ')}: {shown}")
