"""The only place that parses arguments, prints and exits. Data on stdout, all else on stderr.

Every command imports what it needs when it runs: `--help` loads no database or Socket.IO library.

    output    what every command shares
    setup     init, config, service, dashboards
    daemon    run, simulate, demo
    looking   check, db
    status    status
    tail      tail
    tickers   add, remove, reload
    books     audit, dead-letters
    analysis  coverage, backfill
    taking    export, replay
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from ingestor import __version__
from ingestor.cli import check, coverage, dead_letters, export, init, run, status, tail, tickers
from ingestor.cli.output import safe, say
from ingestor.core.redaction import redactor
from ingestor.core.version import source_commit
from ingestor.errors import IngestorError

app = typer.Typer(
    help="Market Prophit's crowd sentiment to SQL: complete, once, gaps on record.",
    pretty_exceptions_enable=False,  # its tracebacks print local variables, and with them secrets
    rich_markup_mode=None,  # its library would take longer to load than the help to be read
)
for command in (
    run.run,
    run.demo,
    run.simulate,
    check.check,
    status.status,
    tail.tail,
    tickers.add,
    tickers.remove,
    tickers.reload,
    dead_letters.audit,
    init.init,
):
    app.command()(command)
app.command()(coverage.coverage)
app.command()(coverage.backfill)
app.command()(export.export)
app.command()(export.replay)
for name, group in (
    ("config", init.config_app),
    ("service", init.service_app),
    ("dashboards", init.dashboards_app),
    ("db", check.db_app),
    ("dead-letters", dead_letters.letters_app),
):
    app.add_typer(group, name=name, no_args_is_help=True)


def main() -> None:
    """Run the command. Errors end the process with their own exit code, in plain words, without secrets."""
    try:
        app(prog_name="ingestor")
    except IngestorError as error:
        _exit_with(str(error), error.exit_code)
    except Exception:
        _exit_with(f"{traceback.format_exc()}This is a mistake in the ingestor.", IngestorError.exit_code)


def _exit_with(message: str, code: int) -> None:
    # The database's or the provider's words may be in it.
    print("\n".join(map(safe, redactor.scrub(message).split("\n"))), file=sys.stderr)
    sys.exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        known = source_commit()
        say(f"ingestor {__version__}{f' ({known})' if known else ''}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and the commit."),
    ] = False,
) -> None:
    """Nothing is done before the command itself; without one, the help says which there are."""
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)
