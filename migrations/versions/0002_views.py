"""Create the views that analysts read.

``0002_views.sql`` has the views whose SQL is the same for both databases; the others are in one file per database.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from alembic import op

revision = "v1_0002_views"
down_revision = "v1_0001_tables"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent
VIEW = re.compile(r"^CREATE VIEW (?P<name>\w+) AS /\* (?P<comment>.*?) \*/.*?(?=;$)", re.DOTALL | re.MULTILINE)
# SQLite cuts the text of a time behind `prefix` characters and appends `suffix` to get the start of the bucket.
CANDLES = (
    {"view": "crowd_sentiment_hourly", "hours": 1, "unit": "hour", "prefix": 13, "suffix": ":00:00"},
    {"view": "crowd_sentiment_daily", "hours": 24, "unit": "day", "prefix": 10, "suffix": " 00:00:00"},
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    candles = Template(read(f"0002_candles.{dialect}.sql"))
    for script in (read("0002_views.sql"), read(f"0002_views.{dialect}.sql"), *map(candles.substitute, CANDLES)):
        for statement in VIEW.finditer(script):
            execute(statement[0])
            if dialect == "postgresql":  # SQLite keeps the statement, and the comment with it
                execute(f"COMMENT ON VIEW {statement['name']} IS '{statement['comment']}'")


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def execute(statement: str) -> None:
    # as is: a colon or a percent sign is no parameter
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
