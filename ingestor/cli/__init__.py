"""The command line: one module per command. The only package that parses arguments, prints and exits.

Results go to stdout, everything else to stderr. Commands import what they need when they run, so that `--help` does
not load the database and Socket.IO libraries.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from ingestor import __version__
from ingestor.cli import (
    audit,
    backfill,
    check,
    config,
    coverage,
    db,
    dead_letters,
    demo,
    deploy,
    export,
    init,
    replay,
    run,
    simulate,
    spool,
    status,
    tail,
    tickers,
)
from ingestor.cli.output import echo, printable
from ingestor.cli.standard_streams import open_standard_streams
from ingestor.core.redaction import redactor
from ingestor.core.version import source_commit
from ingestor.errors import IngestorError

app = typer.Typer(
    help="Write Market Prophit's crowd sentiment to SQL: complete, without duplicates, with every gap on record.",
    pretty_exceptions_enable=False,  # its tracebacks print local variables, and secrets with them
    context_settings={"help_option_names": ["--help", "-h"]},  # groups and commands inherit it
    rich_markup_mode=None,  # importing rich would take longer than printing the help
)
for command in (
    run.run,
    demo.demo,
    simulate.simulate,
    check.check,
    status.status,
    tail.tail,
    tickers.add,
    tickers.remove,
    tickers.reload,
    audit.audit,
    init.init,
    coverage.coverage,
    backfill.backfill,
    export.export,
    replay.replay,
):
    app.command()(command)
for group in (
    config.config_app,
    deploy.service_app,
    deploy.dashboards_app,
    db.db_app,
    dead_letters.dead_letters_app,
    spool.spool_app,
):
    app.add_typer(group, no_args_is_help=True)


def main() -> None:
    """Run the command. An error ends the process with the error's exit code and message, secrets masked."""
    open_standard_streams()
    try:
        app(prog_name="ingestor")
    except IngestorError as error:
        _exit_with(str(error), error.exit_code)
    except Exception:
        _exit_with(f"{traceback.format_exc()}This is a bug in the ingestor.", IngestorError.exit_code)


def _exit_with(message: str, code: int) -> None:
    # The message may quote the database or the provider.
    print("\n".join(map(printable, redactor.scrub(message).split("\n"))), file=sys.stderr)
    sys.exit(code)


def _show_version(requested: bool) -> None:
    if requested:
        revision = source_commit()
        echo(f"ingestor {__version__}{f' ({revision})' if revision else ''}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and commit, and exit."),
    ] = False,
) -> None:
    """Show the help if no command is given."""
    if context.invoked_subcommand is None:
        echo(context.get_help())
        raise typer.Exit(2)
