"""Add the view of what each instance by itself did not receive."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0004_instance_gaps"
down_revision = "0003_runs_and_connections"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent
VIEW = re.compile(r"^CREATE VIEW (?P<name>\w+) AS /\* (?P<comment>.*?) \*/.*?(?=;$)", re.DOTALL | re.MULTILINE)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    for view in VIEW.finditer((FOLDER / f"0004_views.{dialect}.sql").read_text(encoding="utf-8")):
        execute(view[0])
        if dialect == "postgresql":  # SQLite keeps the statement, and the comment with it
            execute(f"COMMENT ON VIEW {view['name']} IS '{view['comment']}'")


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def execute(statement: str) -> None:
    # as is: a colon or a percent sign is no parameter
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
