"""Commands db upgrade, db current and db copy."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config, open_database, parse_target_url
from ingestor.cli.output import echo, echo_stderr, print_result, progress_bar

if TYPE_CHECKING:
    from ingestor.store.copy.copier import CopiedTable

db_app = typer.Typer(name="db", help="Show and upgrade the database schema, and copy a database.")
LINE_SECONDS = 30  # between two lines about a large table
MAX_RANGES = 5  # that are named of one table


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
    from ingestor.store import open_database as store

    with store.open_database(load_config(config).database.url.get_secret_value()) as engine:
        revision = migrate.current_revision(engine)
    data = {"current": revision, "head": migrate.head_revision()}
    print_result(output, data, lambda: f"database {revision or 'empty'}, program {migrate.head_revision()}")


@db_app.command("copy")
def copy(
    into: Annotated[str, typer.Option(help="URL of another database. It may be empty or a SQLite file to create.")],
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Copy all history into another database, and prove it.

    May be interrupted and repeated: it goes on, or brings an older copy up to date, also by deleting what the source
    no longer has. The daemon may keep running. Exits with 1 if a table is not equal at the end; until the end, the
    daemon refuses the copy.

    \b
    Example:
      ingestor db copy --into postgresql://ingestor@db.example/ingestor
    """
    from ingestor.commands.db_copy import copy_database, open_target
    from ingestor.store.copy.copier import count_rows

    with (
        open_database(load_config(config)) as source,
        open_target(source, parse_target_url(into)) as target,
        _progress(lambda: count_rows(source)) as advance,
    ):
        tables = copy_database(source, target, advance)
    equal = all(table.equal for table in tables)
    data = {"equal": equal, "tables": [{**asdict(table), "equal": table.equal} for table in tables]}
    print_result(output, data, lambda: _format_copy(tables))
    raise typer.Exit(0 if equal else 1)


@contextmanager
def _progress(total: Callable[[], int]) -> Iterator[Callable[[str, int], None]]:
    """Show a progress bar if stderr is a terminal, else a line at the end of each step and twice a minute."""
    is_terminal = sys.stderr.isatty()
    said_at, done, of_step = time.monotonic(), 0, 0
    with progress_bar("rows", total) as update:

        def advance(step: str, rows: int) -> None:
            nonlocal said_at, done, of_step
            done, of_step = done + rows, of_step + rows
            update(done)
            if not is_terminal and (not rows or time.monotonic() > said_at + LINE_SECONDS):
                echo_stderr(f"{step}: {of_step:,} rows")
                said_at = time.monotonic()
            if not rows:
                of_step = 0

        yield advance


def _format_copy(tables: Sequence[CopiedTable]) -> str:
    width = max(len(table.name) for table in tables)
    lines = [f"{table.name:{width}} {table.rows:>13,} rows  {_format_comparison(table)}" for table in tables]
    total = sum(table.rows for table in tables)
    if all(table.equal for table in tables):
        return "\n".join([*lines, f"both databases are equal: {total:,} rows. Set database.url to the copy to use it"])
    return "\n".join([*lines, "the databases differ: repeat the command; until they are equal, the copy is refused"])


def _format_comparison(table: CopiedTable) -> str:
    if table.equal:
        return f"equal, sha256 {table.sha256}"
    ranges = "; ".join(table.different[:MAX_RANGES]) or "not compared, since other tables differ"
    more = f"; and {len(table.different) - MAX_RANGES} more" if len(table.different) > MAX_RANGES else ""
    return f"DIFFERENT, target {table.target_rows:,} rows: {ranges}{more}"
