"""Commands that look once, and change nothing of the data: check, db."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.cli.output import ConfigOption, Output, OutputOption, as_json, load_config, print_as, safe, say

if TYPE_CHECKING:
    from ingestor.commands.check import CheckResult
    from ingestor.config import Config

db_app = typer.Typer(help="The database's schema.")


def check(
    connect: Annotated[bool, typer.Option("--connect", help="Try the whole way too, from the key to a row.")] = False,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Look for everything that would keep `run` from working; keep nothing, change nothing."""
    findings: list[CheckResult] = []

    def tell(finding: CheckResult) -> None:
        findings.append(finding)
        if output is Output.TEXT:
            say(safe(_line(finding)))

    _look(load_config(config), connect, tell)
    if output is Output.JSON:
        say(as_json([asdict(finding) for finding in findings]))
    code = next((finding.exit_code for finding in findings if finding.exit_code), 0)
    if code:
        raise typer.Exit(code)


def _look(config: Config, connect: bool, tell: Callable[[CheckResult], None]) -> None:
    import asyncio

    from ingestor.commands import check as checking

    for finding in checking.run_offline_checks(config):
        tell(finding)
    if connect:
        from ingestor.commands import check_online

        asyncio.run(check_online.run_online_checks(config, tell))


def _line(finding: CheckResult) -> str:
    mark = "✗" if finding.exit_code else "!" if finding.warning else "✓"
    took = f" ({finding.seconds:.2f} s)" if finding.seconds is not None else ""
    return f"{mark} {finding.name}: {finding.message}{took}"


@db_app.command("upgrade")
def db_upgrade(config: ConfigOption = None) -> None:
    """Bring the tables up to this program's schema; what is up to date stays as it is."""
    from ingestor.store import migrate
    from ingestor.store.open_database import opened

    with opened(load_config(config).database.url.get_secret_value(), read_only=False) as engine:
        migrate.upgrade(engine)
        found = migrate.current(engine)
    say(f"schema {found}")


@db_app.command("current")
def db_current(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Say which schema the database has, and which one this program wants."""
    from ingestor.store import migrate
    from ingestor.store.open_database import opened

    with opened(load_config(config).database.url.get_secret_value()) as engine:
        found = migrate.current(engine)
    data = {"current": found, "head": migrate.head()}
    print_as(output, data, lambda: f"database {found or 'empty'}, program {migrate.head()}")
