"""Commands db upgrade and db current."""

from __future__ import annotations

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config, open_database
from ingestor.cli.output import echo, print_result

db_app = typer.Typer(name="db", help="Show and upgrade the database schema.")


@db_app.command("upgrade")
def upgrade(config: ConfigOption = None) -> None:
    """Upgrade the database schema to this version's.

    Does nothing if the schema is up to date. `ingestor run` does the same at startup unless database.migrate is
    never.

    \b
    Example:
      ingestor db upgrade
    """
    from ingestor.store import migrate

    with open_database(load_config(config), read_only=False) as engine:
        migrate.upgrade(engine)
        revision = migrate.current_revision(engine)
    echo(f"schema {revision}")


@db_app.command("current")
def current(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show the schema revision of the database and of this version.

    \b
    Example:
      ingestor db current
    """
    from ingestor.store import migrate

    with open_database(load_config(config)) as engine:
        revision = migrate.current_revision(engine)
    data = {"current": revision, "head": migrate.head_revision()}
    print_result(output, data, lambda: f"database {revision or 'empty'}, program {migrate.head_revision()}")
