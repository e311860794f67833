"""Let each batch note which ts it wrote, and create the view ``change_cursor`` and on PostgreSQL ``changes``.

Batches of an older program have no note: for them ``changes`` reads all samples of their instance.
"""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "v1_0006_changes"
down_revision = "v1_0005_history"
branch_labels = None
depends_on = None

STATEMENT = re.compile(r"^CREATE .*?(?=;$)", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"CREATE (VIEW|FUNCTION) (\w+(?:\([^)]*\))?)\s.*?/\* (.*?) \*/", re.DOTALL)


def upgrade() -> None:
    for name in ("from_ts", "to_ts"):
        op.add_column("batches", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.add_column("batches", sa.Column("series_ranges", sa.Text, nullable=True))
    dialect = op.get_bind().dialect.name
    schema = scalar("SELECT quote_ident(current_schema())") if dialect == "postgresql" else ""
    script = Path(__file__).with_name(f"0006_changes.{dialect}.sql").read_text(encoding="utf-8")
    for statement in STATEMENT.findall(script.replace("$schema", schema)):
        execute(statement)
        if dialect == "postgresql":  # SQLite keeps the statement, and the comment with it
            for kind, name, comment in COMMENT.findall(statement):
                execute(f"COMMENT ON {kind} {name} IS '{comment}'")


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def scalar(query: str) -> str:
    return str(op.get_bind().exec_driver_sql(query).scalar_one())


def execute(statement: str) -> None:
    # as is: a colon or a percent sign is no parameter
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
