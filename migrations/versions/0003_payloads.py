"""Create the view ``payloads``, or replace the one that cannot read blocks in which windows share their rows.

A database of revision 2 has the older view if it was made before 2026-11-30, else none.
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "v1_0003_payloads"
down_revision = "v1_0002_views"
branch_labels = None
depends_on = None

STATEMENT = re.compile(r"^(?:DROP|CREATE) .*?(?=;$)", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"/\* (.*?) \*/")


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    script = Path(__file__).with_name(f"0003_payloads.{dialect}.sql").read_text(encoding="utf-8")
    for statement in STATEMENT.findall(script):
        execute(statement)
    if dialect == "postgresql" and (comment := COMMENT.search(script)):  # SQLite keeps the statement, and it with that
        execute(f"COMMENT ON VIEW payloads IS '{comment[1]}'")


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def execute(statement: str) -> None:
    # as is: a colon or a percent sign is no parameter
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
