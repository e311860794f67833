"""Commands about what was written: audit, dead-letters."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.output import ConfigOption, Output, OutputOption, load_config, print_as, safe, say

if TYPE_CHECKING:
    from ingestor.config import Config

letters_app = typer.Typer(help="What could not be read, or what the database refused.")

AllOption = Annotated[bool, typer.Option("--all", help="Also those that were tried again.")]


def audit(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Prove that every entry is accounted for and that the rows balance; exit 1 if not. Tells of losses as well."""
    from ingestor.store.open_database import opened
    from ingestor.store.read.audit import audit as find
    from ingestor.store.read.audit import find_losses

    loaded = load_config(config)
    with opened(loaded.database.url.get_secret_value()) as engine:
        findings = find(engine, samples_pruned=loaded.database.retention.samples is not None)
        notes = find_losses(engine)
    told = [f"! {note.check}: {note.message}" for note in notes]
    told += [f"✗ {finding.check}: {finding.message}" for finding in findings] or ["✓ everything balances"]
    found = {"findings": [asdict(finding) for finding in findings], "notes": [asdict(note) for note in notes]}
    print_as(output, {"balanced": not findings, **found}, lambda: "\n".join(map(safe, told)))
    if findings:
        raise typer.Exit(1)


@letters_app.command("list")
def letters_list(
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
    every: AllOption = False,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 100,
) -> None:
    """The dead letters that nobody has tried again, one line each."""
    letters = _letters(load_config(config), limit=limit, include_retried=every)
    print_as(output, letters, lambda: "\n".join(map(_line, letters)) or "there are none")


@letters_app.command("show")
def letters_show(
    number: Annotated[int, typer.Argument(help="Its id, as listed.")],
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """One dead letter with everything that is known of it."""
    letters = _letters(load_config(config), ids=[number])
    if not letters:
        raise typer.BadParameter(f"there is no dead letter {number}")
    (letter,) = letters
    print_as(output, letter, lambda: "\n".join(f"{name}: {safe(value)}" for name, value in letter.items()))


@letters_app.command("retry")
def letters_retry(
    numbers: Annotated[list[int] | None, typer.Argument(help="Ids; default: all that nobody has tried.")] = None,
    config: ConfigOption = None,
) -> None:
    """Send dead letters through decode and write again: after an upgrade, or when the database changed its mind."""
    from ingestor.daemon import control

    loaded = load_config(config)
    answer = control.send_request(loaded.spool.path, "retry", ids=numbers or [])
    count = answer["retried"] if answer else _retry_offline(loaded, numbers or [])
    say(f"{count} dead letters go through again; `ingestor dead-letters list` shows what is still dead")


def _retry_offline(config: Config, numbers: list[int]) -> int:
    from ingestor.commands import offline
    from ingestor.store.open_database import explained

    with explained(config.database.url.get_secret_value()):
        return offline.retry_dead_letters(config, numbers)


def _letters(config: Config, **which: Any) -> list[dict[str, Any]]:
    from ingestor.store.open_database import opened
    from ingestor.store.read import status

    with opened(config.database.url.get_secret_value()) as engine:
        letters = status.list_dead_letters(engine, **which)
    return [{name: _plain(value) for name, value in one.items()} for one in letters]


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _line(letter: dict[str, Any]) -> str:
    row = "frame" if letter["row_index"] is None else f"row {letter['row_index']}"
    head = f"{letter['dead_letter_id']}  {letter['received_at']}  entry {letter['seq']} {row}  {letter['stage']}"
    return safe(f"{head}: {letter['reason']}: {str(letter['detail'])[:80]}")
