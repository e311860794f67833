"""Create the view ``history`` and, on PostgreSQL, the functions ``as_of`` and ``newest``.

The views of feeds without users bind the whole key of a series: SQLite then knows that a ticker has one series, and
reads its newest rows backwards instead of sorting all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "v1_0005_history"
down_revision = "v1_0004_deletions"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent
FEED_VIEW = re.compile(r"^CREATE VIEW (\w+) AS [^;]*\bn\.feed = '[^;]*\bn\.metric = '[^;]*'(?=;$)", re.MULTILINE)
STATEMENT = re.compile(r"^CREATE .*?(?=;$)", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"CREATE (VIEW|FUNCTION) (\w+(?:\([^)]*\))?)\s.*?/\* (.*?) \*/", re.DOTALL)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    bind_users(dialect)
    # A function finds the tables of its own schema, whatever the reader's search_path is.
    schema = scalar("SELECT quote_ident(current_schema())") if dialect == "postgresql" else ""
    for statement in STATEMENT.findall(read(f"0005_history.{dialect}.sql").replace("$schema", schema)):
        execute(statement)
        if dialect == "postgresql":  # SQLite keeps the statement, and the comment with it
            for kind, name, comment in COMMENT.findall(statement):
                execute(f"COMMENT ON {kind} {name} IS '{comment}'")


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def bind_users(dialect: str) -> None:
    for view in FEED_VIEW.finditer(read("0002_views.sql")):
        statement = f"{view[0]} AND n.user_id = ''"
        if dialect == "postgresql":
            statement = statement.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1)
        else:
            execute(f"DROP VIEW {view[1]}")
        execute(statement)


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def scalar(query: str) -> str:
    return str(op.get_bind().exec_driver_sql(query).scalar_one())


def execute(statement: str) -> None:
    # as is: a colon or a percent sign is no parameter
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
