"""Candles of every feed and metric, by the same terms as ``coverage_daily``.

``crowd_sentiment_hourly`` and ``_daily`` become selections of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from alembic import op

revision = "v1_0007_completeness"
down_revision = "v1_0006_changes"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent
STATEMENT = re.compile(r"^(?:DROP|CREATE) .*?(?=;$)", re.DOTALL | re.MULTILINE)
COMMENT_OF = re.compile(r"VIEW (\w+) AS /\* (.*?) \*/", re.DOTALL)
COMMENT = (
    "Every series by UTC {unit}: each bucket that has samples, or was wanted. Covered: live or repaired, even if the"
    " feed was quiet. coverage_percent: of the length of the bucket, even if not all of it was wanted. is_final: the"
    " bucket ended more than an hour ago (the provider restates values for one hour), no repair that may still restate"
    " it is open, and the time just after that hour was live, or is in a gap whose repair has ended, or no subscription"
    " was wanted then; but not if a part of it that is not covered may lie before the first subscription, or if"
    " retention has deleted samples of that time, which samples_deleted says."
)
# Which subscriptions `l` say something about a series `n`.
MATCH = (
    "l.feed = n.feed AND l.ticker IN ('', n.ticker) AND CASE WHEN l.params LIKE '%\"user_id\"%'"
    " THEN {user} = n.user_id ELSE TRUE END"
)
USER = {"postgresql": "l.params::json ->> 'user_id'", "sqlite": "CAST(json_extract(l.params, '$.user_id') AS TEXT)"}
# SQLite cuts the text of a time behind `prefix` characters and appends `suffix` to get the start of the bucket.
CANDLES = (
    {"view": "candles_hourly", "hours": 1, "unit": "hour", "prefix": 13, "suffix": ":00:00"},
    {"view": "candles_daily", "hours": 24, "unit": "day", "prefix": 10, "suffix": " 00:00:00"},
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    match = MATCH.format(user=USER[dialect])
    candles = Template(read(f"0007_candles.{dialect}.sql"))
    execute_all(read(f"0007_coverage.{dialect}.sql"))
    for names in CANDLES:
        comment = COMMENT.format(unit=names["unit"])
        execute_all(candles.substitute(names, match=match, comment=comment, after=names["hours"] + 1.1))
    execute_all(read(f"0007_crowd_sentiment.{dialect}.sql"))


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def execute_all(script: str) -> None:
    for statement in STATEMENT.findall(script):
        execute(statement)
        commented = COMMENT_OF.search(statement)
        if commented and op.get_bind().dialect.name == "postgresql":  # SQLite keeps the statement, and it with that
            execute(f"COMMENT ON VIEW {commented[1]} IS '{commented[2]}'")


def execute(statement: str) -> None:
    # as is: a colon or a percent sign is no parameter
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
