"""Commands about what was written: audit, dead-letters."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.output import ConfigOption, Output, OutputOption, load_config, print_as, say

if TYPE_CHECKING:
    from ingestor.store.engine import Engine

letters_app = typer.Typer(help="What could not be read, or what the database refused.")

AllOption = Annotated[bool, typer.Option("--all", help="Also those that were tried again.")]


def audit(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Prove that every entry is accounted for and that the rows balance; exit 1 if not. Tells of losses as well."""
    from ingestor.store.audit import audit as find
    from ingestor.store.audit import losses

    loaded = load_config(config)
    engine = _reader(loaded)
    try:
        findings = find(engine, samples_pruned=loaded.database.retention.samples is not None)
        notes = losses(engine)
    finally:
        engine.dispose()
    told = [f"! {note.check}: {note.message}" for note in notes]
    told += [f"✗ {finding.check}: {finding.message}" for finding in findings] or ["✓ everything balances"]
    found = {"findings": [asdict(finding) for finding in findings], "notes": [asdict(note) for note in notes]}
    print_as(output, {"balanced": not findings, **found}, lambda: "\n".join(told))
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
    letters = _letters(load_config(config), limit=limit, all_=every)
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
    print_as(output, letter, lambda: "\n".join(f"{name}: {_safe(value)}" for name, value in letter.items()))


@letters_app.command("retry")
def letters_retry(
    numbers: Annotated[list[int] | None, typer.Argument(help="Ids; default: all that nobody has tried.")] = None,
    config: ConfigOption = None,
) -> None:
    """Send dead letters through decode and write again: after an upgrade, or when the database changed its mind."""
    from ingestor import control, offline

    loaded = load_config(config)
    answer = control.ask(loaded.spool.path, "retry", ids=numbers or [])
    count = answer["retried"] if answer else offline.retry(loaded, numbers or [])
    say(f"{count} dead letters go through again; `ingestor dead-letters list` shows what is still dead")


def _letters(config: Any, **which: Any) -> list[dict[str, Any]]:
    from ingestor.store import query

    engine = _reader(config)
    try:
        letters = query.dead_letters(engine, **which)
    finally:
        engine.dispose()
    return [{name: _plain(value) for name, value in one.items()} for one in letters]


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _reader(config: Any) -> Engine:
    from ingestor.store.engine import connect

    return connect(config.database.url.get_secret_value(), read_only=True)


def _line(letter: dict[str, Any]) -> str:
    row = "frame" if letter["row_index"] is None else f"row {letter['row_index']}"
    head = f"{letter['dead_letter_id']}  {letter['received_at']}  entry {letter['seq']} {row}  {letter['stage']}"
    return f"{head}: {_safe(letter['reason'])}: {_safe(letter['detail'])[:80]}"


def _safe(value: object) -> str:
    """Text from outside cannot move the cursor or turn the line round."""
    text = str(value)
    return text if text.isprintable() else ascii(text)
