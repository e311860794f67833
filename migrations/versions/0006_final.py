"""A candle is not final while a gap goes on, nor while one is repaired that may tell of restatements.

Healing asks from an hour before a gap on, and opens a repair only once the gap is over.
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
    " Final: over for an hour, the window in which the provider restates; somebody has listened since, or nobody is to;"
    " and no repair of that time is under way."
)
NAMED_HOURS = 0.1  # after a gap, by when there is a repair of it: they are looked for once a minute


def upgrade() -> None:
    before = context.script.get_revision("0004").module
    sql = before.POSTGRESQL if op.get_bind().dialect.name == "postgresql" else before.SQLITE
    final = is_final(before, sql.later.format)
    before.candles("crowd_sentiment_hourly", sql, sql.hour, 1, final, COMMENT)
    before.candles("crowd_sentiment_daily", sql, sql.day, 24, final, COMMENT)


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def is_final(before: ModuleType, later: Callable[..., str]) -> str:
    """Of bucket b."""
    settled = later("b.to_at", 1)
    return f"""COALESCE((SELECT MAX(i.heartbeat_at) FROM instances i) >= {settled}, FALSE)
            AND NOT EXISTS (
                SELECT 1 FROM repairs r JOIN subscriptions s ON s.subscription_id = r.subscription_id
                WHERE r.state = 'open' AND r.from_ts < {settled} AND r.to_ts > b.from_at
                    AND s.feed = 'crowd-sentiment' AND s.ticker IN ('', b.ticker))
            AND (EXISTS (
                SELECT 1 FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
                WHERE {before.LISTENER} AND c.state = 'live'
                    AND c.to_at >= {settled} AND c.to_at >= {later("c.from_at", NAMED_HOURS)})
            OR NOT EXISTS (
                SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
                WHERE {before.LISTENER} AND c.ended_at IS NULL AND c.state <> 'stopped'))"""
