"""Command check."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config
from ingestor.cli.output import echo, printable, to_json

if TYPE_CHECKING:
    from ingestor.commands.check_result import CheckResult


def check(
    connect: Annotated[
        bool, typer.Option("--connect", help="Also log in, subscribe, wait for data and write a row (rolled back).")
    ] = False,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check everything that `run` needs. Changes nothing.

    Prints one line per check: ✓ passed, ! warning, ✗ failed. Exits with the code of the first failed check: 69 if a
    service cannot be reached, 74 if the spool cannot be written, 75 if another daemon holds the SQLite database, 77 if
    permission is missing or the key is refused, 78 if the configuration or the schema is wrong.

    \b
    Example:
      ingestor check --connect
    """
    import asyncio

    from ingestor.commands.check import run_offline_checks

    results: list[CheckResult] = []

    def report(result: CheckResult) -> None:
        results.append(result)
        if output is Output.TEXT:
            echo(printable(_format_result(result)))

    loaded = load_config(config, warn=False)
    for result in run_offline_checks(loaded):
        report(result)
    if connect:
        from ingestor.commands.check_connect import run_online_checks

        asyncio.run(run_online_checks(loaded, report))
    if output is Output.JSON:
        echo(to_json([asdict(result) for result in results]))
    code = next((result.exit_code for result in results if result.exit_code), 0)
    if code:
        raise typer.Exit(code)


def _format_result(result: CheckResult) -> str:
    mark = "✗" if result.exit_code else "!" if result.warning else "✓"
    duration = f" ({result.seconds:.2f} s)" if result.seconds is not None else ""
    return f"{mark} {result.name}: {result.message}{duration}"
