"""A candle is not final while a gap goes on, nor while one is repaired that may tell of restatements.

A repair is begun only once its gap is over, and asks from an hour before the gap on.
"""

# ruff: noqa: S608 -- every text that is pasted into a statement stands here, and in 0004

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from alembic import context, op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COMMENT = (
    "Crowd sentiment by UTC bucket. Covered: listened or repaired, also where the feed was quiet."
    " Final: over for an hour, the window in which the provider restates, with no repair of that time under way;"
    " and a little later somebody listened, or that was a gap whose repair has ended, or nobody was to."
)
LOOK_HOURS = 1.1  # after the bucket: gaps are looked for once a minute, and those of its window have their repairs


def upgrade() -> None:
    before = context.script.get_revision("0004").module
    sql = before.POSTGRESQL if op.get_bind().dialect.name == "postgresql" else before.SQLITE
    final = is_final(before, sql.later.format)
    before.candles("crowd_sentiment_hourly", sql, sql.hour, 1, final, COMMENT)
    before.candles("crowd_sentiment_daily", sql, sql.day, 24, final, COMMENT)


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def is_final(before: ModuleType, later: Callable[..., str]) -> str:
    """Of bucket b. What is asked of live and repaired time is asked of it together: folding makes one of it."""
    settled, look = later("b.to_at", 1), later("b.to_at", LOOK_HOURS)

    def exists(table: str, condition: str) -> str:
        return f"""EXISTS (
                SELECT 1 FROM subscriptions l JOIN {table} c ON c.subscription_id = l.subscription_id
                WHERE {before.LISTENER} AND {condition})"""

    return f"""COALESCE((SELECT MAX(i.heartbeat_at) FROM instances i) >= {settled}, FALSE)
            AND NOT {exists("repairs", f"c.state = 'open' AND c.from_ts < {settled} AND c.to_ts > b.from_at")}
            AND ({exists("coverage_intervals", f"c.state = 'live' AND c.from_at <= {look} AND c.to_at >= {look}")}
            OR {exists("repairs", f"c.state <> 'open' AND c.from_ts <= {look} AND c.to_ts >= {look}")}
            OR NOT {exists("coverage", "c.ended_at IS NULL AND c.state <> 'stopped'")}
            OR NOT {exists("coverage", f"c.started_at <= {look}")})"""
