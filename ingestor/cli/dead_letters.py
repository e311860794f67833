"""Commands dead-letters list, show and retry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config, open_database
from ingestor.cli.output import echo, print_result, printable

if TYPE_CHECKING:
    from ingestor.config import Config

MAX_ID = 2**63 - 1  # of a database's integers

dead_letters_app = typer.Typer(name="dead-letters", help="List and retry data that could not be stored.")


@dead_letters_app.command("list")
def list_letters(
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
    include_retried: Annotated[bool, typer.Option("--all", help="Include those already retried.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=MAX_ID, help="Maximum number of dead letters.")] = 100,
) -> None:
    """List the dead letters that have not been retried.

    A dead letter is a frame or row that could not be decoded, or that the database rejected. Its text is kept.

    \b
    Example:
      ingestor dead-letters list --all
    """
    letters = _fetch(load_config(config), limit=limit, include_retried=include_retried)
    print_result(output, letters, lambda: "\n".join(map(_format_letter, letters)) or "no dead letters")


@dead_letters_app.command("show")
def show(
    letter_id: Annotated[
        int, typer.Argument(min=1, max=MAX_ID, help="Id of the dead letter, as listed.", metavar="ID")
    ],
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show one dead letter with its text.

    \b
    Example:
      ingestor dead-letters show 42
    """
    (letter,) = _find(load_config(config), [letter_id])
    print_result(output, letter, lambda: "\n".join(f"{name}: {printable(value)}" for name, value in letter.items()))


@dead_letters_app.command("retry")
def retry(
    letter_ids: Annotated[
        list[int] | None,
        typer.Argument(
            min=1, max=MAX_ID, help="Ids of dead letters. Default: all that have not been retried.", metavar="ID"
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Decode and write dead letters again.

    Use this after an upgrade that can decode them, or after the cause in the database has been fixed. The running
    daemon does the work; without one, this command does.

    \b
    Example:
      ingestor dead-letters retry 42 43
    """
    from ingestor.daemon import control_socket

    loaded = load_config(config)
    if letter_ids:
        _find(loaded, letter_ids)
    response = control_socket.send_request(loaded.spool.path, "retry", ids=letter_ids or [])
    if response is None:
        from ingestor.commands import without_daemon

        response = {"retried": without_daemon.retry_dead_letters(loaded, letter_ids or [])}
    echo(f"retrying {response['retried']} dead letters; `ingestor dead-letters list` shows those that fail again")


def _find(config: Config, ids: list[int]) -> list[dict[str, Any]]:
    """Return these dead letters. Raises typer.BadParameter for one that does not exist."""
    letters = _fetch(config, ids=ids, limit=len(ids))
    if missing := sorted(set(ids) - {letter["dead_letter_id"] for letter in letters}):
        message = f"there is no dead letter {missing[0]}; `ingestor dead-letters list --all` shows which there are"
        raise typer.BadParameter(message, param_hint="ID")
    return letters


def _fetch(config: Config, **filters: Any) -> list[dict[str, Any]]:
    from ingestor.store.read.status_queries import list_dead_letters

    with open_database(config) as engine:
        return list_dead_letters(engine, **filters)


def _format_letter(letter: dict[str, Any]) -> str:
    row = "frame" if letter["row_index"] is None else f"row {letter['row_index']}"
    received = letter["received_at"].isoformat()
    origin = f"{letter['dead_letter_id']}  {received}  entry {letter['seq']} {row}  {letter['stage']}"
    return printable(f"{origin}: {letter['reason']}: {str(letter['detail'])[:80]}")
