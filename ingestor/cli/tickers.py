"""Commands add, remove and reload."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config
from ingestor.cli.output import echo, echo_stderr, print_result, printable

if TYPE_CHECKING:
    from ingestor.config import Config
    from ingestor.config.ticker_file import TickerFiles

MAX_LISTED = 10  # tickers that have a line each, with the changed lines of the file; of more there is a summary
MAX_LINE = 110  # characters of a changed line

EditFunction: TypeAlias = Callable[[str, str, str, Sequence[str], "TickerFiles"], tuple[str, list[str]]]
TickersArgument = Annotated[
    list[str] | None, typer.Argument(help="Tickers as the provider spells them: TSLA ON 6E_F.", metavar="TICKER")
]
FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Text file with one ticker a line, or a CSV with them in its first column; - is stdin.",
        metavar="FILE",
    ),
]
PathOption = Annotated[str, typer.Option("--path", help="Endpoint. Required if the file has several.")]
ReloadOption = Annotated[bool, typer.Option("--reload", help="Make the running daemon reload the file.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Add even what is surely no ticker (such as @X), or an unknown endpoint.")
]


def add(
    tickers: TickersArgument = None,
    from_: FromOption = None,
    path: PathOption = "",
    force: ForceOption = False,
    reload: ReloadOption = False,
    config: ConfigOption = None,
) -> None:
    """Add tickers to the configuration file.

    Adds them to the tickers_file where the configuration names one.
    Keeps the comments and layout of the file, and prints the changed lines; of more than ten tickers, a summary.

    \b
    Examples:
      ingestor add TSLA NVDA --path /real-time/crowd-sentiment --reload
      ingestor add --from sp500.csv --path /real-time/tweet-volume
    """
    from ingestor.config.edit import add_tickers
    from ingestor.provider.catalog import requires_ticker

    names = _read_tickers(tickers, from_, force=force)
    before = load_config(config)
    endpoint = _validate_endpoint(path or _only_path(before))
    if not force:
        _reject_unknown_endpoint(endpoint, before)
    narrow = requires_ticker(endpoint, {})
    change = _Change(endpoint, names, "added", "already subscribed", "there already")
    after = change.apply(partial(add_tickers, narrow=narrow), config)
    if everything := next((item for item in before.subscriptions if item.path == endpoint and not item.params), None):
        echo(printable(_describe_everything(everything.location, endpoint, narrow=narrow)))
    _print_new_warnings(before, after)
    if reload:
        echo(_format_response(_request_reload(after)))


def remove(
    tickers: TickersArgument = None,
    from_: FromOption = None,
    path: PathOption = "",
    reload: ReloadOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove tickers from the configuration file.

    Removes them from the tickers_file where the configuration names one.
    Keeps the comments and layout of the file, and prints the changed lines; of more than ten tickers, a summary. With
    its last ticker, the subscription is removed. Stored data is kept.

    \b
    Example:
      ingestor remove TSLA --reload
    """
    from ingestor.config.edit import remove_tickers

    names = _read_tickers(tickers, from_, force=True)
    before = load_config(config)
    endpoint = _validate_endpoint(path or _only_path(before))
    change = _Change(endpoint, names, "removed", "not in the file", "not there")
    after = change.apply(remove_tickers, config)
    if change.changed and not any(item.path == endpoint for item in after.subscriptions):
        echo(printable(f"no ticker of {endpoint} is left, so its subscription is removed"))
    if reload:
        echo(_format_response(_request_reload(after)))


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


class _Change:
    """Adds or removes tickers of an endpoint, and prints what has changed."""

    def __init__(self, endpoint: str, tickers: list[str], done: str, unchanged: str, others: str) -> None:
        self._endpoint = endpoint
        self._tickers = tickers
        self._done = done
        self._unchanged = unchanged  # of one ticker
        self._others = others  # of several
        self.changed: list[str] = []

    def apply(self, edit: EditFunction, config: Path | None) -> Config:
        """Edit the files and print the change. Return the new configuration. Raises ConfigError."""
        import os

        from ingestor.config.loader import find_file, ticker_files
        from ingestor.config.rewrite import rewrite_file
        from ingestor.provider.catalog import feed_name

        files = ticker_files(find_file(config, os.environ), os.environ)

        def edit_text(text: str, name: str) -> str:
            text, self.changed = edit(text, name, self._endpoint, self._tickers, files)
            return text

        new, before, after = rewrite_file(edit_text, config, feed_name=feed_name, files=files)
        texts = {new.source: (before, after)} if before != after or not files.original else {}
        texts |= {path: (text, files.lists[path].text) for path, text in files.original.items()}
        echo("\n".join(map(printable, self._describe(texts))))
        return new

    def _describe(self, texts: dict[Path, tuple[str, str]]) -> Iterator[str]:
        for path, (before, after) in texts.items():
            yield f"{path}: {self._endpoint}"
            if len(self._tickers) <= MAX_LISTED:
                yield from _changed_lines(before, after)
        if len(self._tickers) > MAX_LISTED:
            yield self._summarize()
        else:
            for ticker in self._tickers:
                yield f"{ticker}: {self._done if ticker in self.changed else self._unchanged}"

    def _summarize(self) -> str:
        names, rest = sorted(self.changed), len(self._tickers) - len(self.changed)
        shown = ", ".join(names if len(names) <= 3 else [*names[:2], f"… {names[-1]}"])
        preposition = "to" if self._done == "added" else "from"
        noun = "ticker" if len(names) == 1 else "tickers"
        summary = f"{self._done} {len(names)} {noun} {preposition} {self._endpoint}"
        return (
            summary
            + (f": {shown}" if names else "")
            + (f"; {rest} {'was' if rest == 1 else 'were'} {self._others}" if rest else "")
        )


def _read_tickers(arguments: list[str] | None, source: Path | None, *, force: bool) -> list[str]:
    """Return the tickers that are given, each once. Raises typer.BadParameter."""
    from ingestor.commands.ticker_source import check_ticker, read_tickers
    from ingestor.config.ticker_file import MAX_BYTES, read_bytes

    if not arguments and source is None:
        raise typer.BadParameter("Missing argument 'TICKER': name tickers, or a file with --from")
    try:
        tickers = [check_ticker(ticker, force=force) for ticker in arguments or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TICKER") from None
    if source is not None:
        try:
            raw = sys.stdin.buffer.read(MAX_BYTES + 1) if str(source) == "-" else read_bytes(source)
            found = read_tickers(raw, "stdin" if str(source) == "-" else str(source), force=force)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--from") from None
        tickers += found.tickers
        if found.note:
            echo_stderr(found.note)
    return list(dict.fromkeys(tickers))


def _only_path(config: Config) -> str:
    paths = sorted({subscription.path for subscription in config.subscriptions})
    if len(paths) > 1:
        raise typer.BadParameter(f"the file has several endpoints; name one: {', '.join(paths)}", param_hint="--path")
    return paths[0]


def _validate_endpoint(path: str) -> str:
    from ingestor.config.subscriptions import validate_endpoint

    try:
        return validate_endpoint(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--path") from None


def _reject_unknown_endpoint(path: str, config: Config) -> None:
    """Raise typer.BadParameter for an endpoint that is neither documented nor in the file."""
    from ingestor.provider.catalog import unknown_path_warning

    is_new = all(subscription.path != path for subscription in config.subscriptions)
    if is_new and (warning := unknown_path_warning(path)):
        message = warning.removesuffix("; subscribing to it anyway")
        raise typer.BadParameter(f"{message} (--force subscribes to it anyway)", param_hint="--path")


def _describe_everything(location: str, path: str, *, narrow: bool) -> str:
    """Describe what an entry without tickers means for the tickers that are added."""
    if narrow:
        return f"{location} named no ticker, which the provider refuses for {path}; now it names these"
    return f"{location} names no tickers, so every ticker of {path} is subscribed to; to narrow it, list tickers there"


def _print_new_warnings(before: Config, after: Config) -> None:
    from ingestor.provider.catalog import find_warnings

    known = {warning.message for warning in find_warnings(before)}
    for warning in find_warnings(after):
        if warning.message not in known:
            echo_stderr(str(warning))


def _changed_lines(before: str, after: str) -> Iterator[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return (_shorten(line) for line in list(lines)[2:] if not line.startswith("@@"))


def _shorten(line: str) -> str:
    """Cut the middle out of a long line: what is added stands at its end."""
    half = MAX_LINE // 2
    return line if len(line) <= MAX_LINE else f"{line[:half]} … {line[-half:]}"


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
