"""Commands that look once, and change nothing of the data: check, db."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ingestor.cli.output import ConfigOption, Output, OutputOption, load_config, print_as, safe, say

db_app = typer.Typer(help="The database's schema.")


def check(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Look for everything that would keep `run` from working; change nothing."""
    from ingestor import checking

    findings = list(checking.offline(load_config(config)))
    marks = {finding.name: "!" if finding.warning else "✗" if finding.exit_code else "✓" for finding in findings}
    print_as(
        output,
        [asdict(finding) for finding in findings],
        lambda: "\n".join(safe(f"{marks[finding.name]} {finding.name}: {finding.message}") for finding in findings),
    )
    code = next((finding.exit_code for finding in findings if finding.exit_code), 0)
    if code:
        raise typer.Exit(code)


@db_app.command("upgrade")
def db_upgrade(config: ConfigOption = None) -> None:
    """Bring the tables up to this program's schema; what is up to date stays as it is."""
    from ingestor.store import migrate
    from ingestor.store.opening import opened

    with opened(load_config(config).database.url.get_secret_value(), read_only=False) as engine:
        migrate.upgrade(engine)
        found = migrate.current(engine)
    say(f"schema {found}")


@db_app.command("current")
def db_current(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Say which schema the database has, and which one this program wants."""
    from ingestor.store import migrate
    from ingestor.store.opening import opened

    with opened(load_config(config).database.url.get_secret_value()) as engine:
        found = migrate.current(engine)
    data = {"current": found, "head": migrate.head()}
    print_as(output, data, lambda: f"database {found or 'empty'}, program {migrate.head()}")
