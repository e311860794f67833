"""Create the views that analysts read.

Their SQL is in the files beside this one: ``0002_views.sql`` has the views that both databases spell alike, a file per
database the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import Template

from alembic import op

revision = "0002_views"
down_revision = "0001_tables"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent
CANDLES = (
    {
        "view": "crowd_sentiment_hourly",
        "unit": "hour",
        "hours": 1,
        "last_bucket": 366 * 24 - 1,  # of a stretch
        "seconds_per_percent": 36,
        "prefix": 13,  # SQLite's text of a time is cut behind the hour
        "suffix": ":00:00.000000",
    },
    {
        "view": "crowd_sentiment_daily",
        "unit": "day",
        "hours": 24,
        "last_bucket": 366 - 1,
        "seconds_per_percent": 24 * 36,
        "prefix": 10,
        "suffix": " 00:00:00.000000",
    },
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    candles = Template(read(f"0002_candles.{dialect}.sql"))
    scripts = [read("0002_views.sql"), read(f"0002_views.{dialect}.sql"), *map(candles.substitute, CANDLES)]
    for script in scripts:
        for statement in statements(script):
            create_view(statement, dialect)


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def statements(script: str) -> Iterator[str]:
    """Yield the statements of a script, each from its CREATE on."""
    return (match[0] for match in re.finditer(r"^CREATE VIEW .*?(?=;$)", script, re.DOTALL | re.MULTILINE))


def create_view(statement: str, dialect: str) -> None:
    """Create a view with its comment where people look for it: SQLite keeps the statement, PostgreSQL a comment."""
    execute(statement)
    if dialect == "postgresql":
        name, comment = re.match(r"CREATE VIEW (\w+) AS /\* (.*?) \*/", statement).groups()  # type: ignore[union-attr]
        execute(f"COMMENT ON VIEW {name} IS '{comment}'")


def execute(statement: str) -> None:
    # As it stands: neither a colon nor a percent sign marks a parameter.
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
