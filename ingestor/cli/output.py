"""Printing as the commands share it: without secrets, and harmless to a terminal."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ingestor.cli.options import Output
from ingestor.cli.standard_streams import discard_output
from ingestor.core.redaction import redactor
from ingestor.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from ingestor.store.maintenance.repairs import Repair

PACKAGE = Path(__file__).parent.parent


def echo(text: str) -> None:
    """Print to stdout, with secrets masked."""
    print(redactor.scrub(text), flush=True)


def echo_stderr(text: str) -> None:
    """Print one line to stderr, with secrets masked and control characters escaped."""
    print(printable(redactor.scrub(text)), file=sys.stderr)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """End the command with exit code 0 on Ctrl-C: the normal end of a command that runs until then."""
    try:
        yield
    except KeyboardInterrupt:
        discard_output()
        raise typer.Exit from None


def sleep_until_closed(seconds: float) -> None:
    """Sleep, but end the command with exit code 0 as soon as the reader of stdout has closed the pipe."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # POLLERR and POLLHUP are always reported
    if stdout.poll(seconds * 1000):
        raise typer.Exit


def printable(value: object) -> str:
    """Return text as one line, with everything escaped that could control a terminal or reorder the text."""
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in str(value))


def print_result(output: Output, data: Any, text: Callable[[], str]) -> None:
    """Print ``data`` as JSON, or the ``text``."""
    echo(to_json(data) if output is Output.JSON else text())


def to_json(data: Any) -> str:
    """Format as indented JSON. Times are ISO 8601; characters that could control a terminal are escaped."""
    return "\n".join(map(printable, json.dumps(data, indent=2, ensure_ascii=False, default=_json_default).split("\n")))


def to_json_line(data: Any) -> str:
    """Format as JSON on one line."""
    return printable(json.dumps(data, ensure_ascii=False, default=_json_default))


def _json_default(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


@contextmanager
def progress_bar(unit: str, total: Callable[[], int], *, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr if that is a terminal. Yields a function that takes how many are done."""
    if not (visible and sys.stderr.isatty()):
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(unit, total=total())
        yield lambda done: bar.update(task, completed=done)


def format_repair(repair: Repair) -> str:
    """Describe a repair on one line."""
    outcome = f"{repair.new_rows:,} new rows" if repair.state == "done" else repair.error or f"waiting, {repair.kind}"
    name = f"{repair.path} {repair.ticker or repair.params}"
    window = f"{repair.from_ts:%Y-%m-%d %H:%M} to {repair.to_ts:%Y-%m-%d %H:%M}"
    return printable(f"{repair.state}: {name} {window}: {outcome}")


def repair_to_dict(repair: Repair) -> dict[str, Any]:
    """Return a repair as it appears in JSON output."""
    names = ("repair_id", "path", "ticker", "kind", "state", "new_rows", "attempts", "error")
    return {name: getattr(repair, name) for name in names} | {"from": repair.from_ts, "to": repair.to_ts}


def package_file(name: str) -> str:
    """Return the text of a file that the wheel contains as ``_name``, and a checkout as ``name`` at its top level."""
    packaged = PACKAGE / f"_{name}"
    return (packaged if packaged.exists() else PACKAGE.parent / name).read_text(encoding="utf-8")


def write_new_file(path: Path, text: str) -> None:
    """Write a file unless it exists with the same text. Raises ConfigError if it has another or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
            return
        message = "already exists and was left unchanged; remove it, or name another file"
    except OSError as error:
        message = f"cannot be written ({os.strerror(error.errno or 0)}); name a file in a folder that you may write to"
    else:
        return
    raise ConfigError([ConfigProblem(str(path), "", message)])
